"""Runs for other engines: what they can do of a config is written, the rest refused or told."""
