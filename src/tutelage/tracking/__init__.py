"""Mirrors of a run's numbers in trackers, which cannot slow or stop it."""
