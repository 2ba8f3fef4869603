"""Data at rest: npz source, slice store, index, releases, teacher cache, fingerprints. No torch, Dagster, MLflow."""
