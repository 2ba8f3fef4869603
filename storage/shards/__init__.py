"""Sharded zarr arrays, written and read without zarr."""
