"""The correctness contract, measured on the user's own pair of models."""
