"""Spaces of settings, and the models that no other beats."""
