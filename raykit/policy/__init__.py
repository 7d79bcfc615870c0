"""What to do, given what is wanted and what is true: pure functions that return decisions."""
