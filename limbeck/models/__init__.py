"""Language models in this process: opened, run, saved with a card."""
