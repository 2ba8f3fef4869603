"""Model science: preprocessing, plan, models, losses, training, metrics, inference. No Dagster, MLflow, zarr."""
