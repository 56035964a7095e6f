"""Which expert answers a prompt: features, fit, frontier, cascade."""
