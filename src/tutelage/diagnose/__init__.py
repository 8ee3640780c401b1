"""What can be said of a pair, or of a run, and why."""
