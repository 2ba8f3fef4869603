"""Predictions, scores, reports, and a model on any folder."""
