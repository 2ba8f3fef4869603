"""Slice stores: plan, parts, publication, index rows, verification."""
