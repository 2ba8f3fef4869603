"""Runs as processes: their turns, their executors and trainers, and what dead ones leave."""
