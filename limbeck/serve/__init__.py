"""One endpoint for many models: engines that write, and what listens in front of them."""
