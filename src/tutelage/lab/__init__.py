"""Tiny tasks and models on which every claim can be re-run in minutes."""
