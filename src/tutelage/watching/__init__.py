"""A running job as a reader sees it: what its files say, and how that is drawn."""
