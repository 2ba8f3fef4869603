"""The two training stages: losses, the step loop, checkpoints."""
