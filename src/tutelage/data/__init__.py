"""Prompts in, batches out: loading, rendering, collation, verification."""
