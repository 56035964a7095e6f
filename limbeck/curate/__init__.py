"""What is kept of what a teacher said: verifiers, the sandbox they run code in, and rules."""
