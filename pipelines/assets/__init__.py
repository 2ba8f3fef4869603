"""Dagster assets, one module per stretch of the flow."""
