"""The training loop and its parts, on one machine or many."""
