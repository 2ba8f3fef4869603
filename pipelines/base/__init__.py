"""What every room of pipelines stands on: settings, profiles, workspace, results, tracking, launching."""
