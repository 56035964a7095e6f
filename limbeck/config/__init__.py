"""YAML into a typed tree: every value knows its line, every error says what is allowed."""
