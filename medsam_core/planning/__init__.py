"""The training plan as data: draws, layout, reading it by step."""
