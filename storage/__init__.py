"""Data at rest: npz source, slice store, slice index, releases, teacher cache, fingerprints. No torch, Dagster, MLflow."""
