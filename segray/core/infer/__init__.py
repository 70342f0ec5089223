"""A model applied to frames: masks, label rows, and what they cost."""
