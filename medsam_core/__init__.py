"""Model science: preprocessing, prompts, plan, models, losses, training, metrics, inference. No Dagster, MLflow, zarr."""
