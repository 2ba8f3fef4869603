"""The work behind the assets, as plain functions of a workspace. No Dagster here; torch only where models are run."""
