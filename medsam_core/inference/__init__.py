"""Predicting cases in the challenge's contract."""

from medsam_core.inference.predictor import Predictor

__all__ = ["Predictor"]
