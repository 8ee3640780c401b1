"""Gradient alignment by targeted rollouts: where a teacher helps, before any training.

spines -> nodes -> branches -> estimates; `job` tells the story.
"""
