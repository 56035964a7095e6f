"""Settings that contradict one another or have no effect."""
