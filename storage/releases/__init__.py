"""Releases: splits, frozen choices of slices, and reading them."""
