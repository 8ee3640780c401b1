"""What to do with a pair that `check` would not train as it is."""
