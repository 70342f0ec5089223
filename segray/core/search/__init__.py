"""Spaces of settings, and the models on the Pareto front."""
