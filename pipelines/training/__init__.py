"""Plans, the two stages and the process that trains them."""
