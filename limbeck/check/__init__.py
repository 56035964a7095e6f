"""A recipe against its models and data, before any work is done; estimates of time, memory and disk."""
