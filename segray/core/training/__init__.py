"""The training loop and what it is made of, on one machine or many."""
