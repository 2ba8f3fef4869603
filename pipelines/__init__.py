"""Orchestration and tracking: the only package that imports Dagster or MLflow."""
