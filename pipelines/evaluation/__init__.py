"""Predictions, scores and reports as assets."""
