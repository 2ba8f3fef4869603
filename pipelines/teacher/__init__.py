"""The teacher: its weights and its cached answers."""
