"""Programs that a model wrote run here, without network or files."""
