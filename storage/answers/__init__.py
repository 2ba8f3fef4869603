"""Teacher caches: the teacher's answers in plan order."""
