"""Predictions against ground truth: protocols, conditions, calibration, significance."""
