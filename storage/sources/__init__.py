"""Source files: finding, judging and reading cases."""
