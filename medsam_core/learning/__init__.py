"""What the two stages learn: losses, questions to the teacher, who answers them."""
