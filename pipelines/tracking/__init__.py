"""MLflow: its store, its client, what runs tell it, and the model it registers."""
