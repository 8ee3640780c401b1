"""What a run leaves on disk: metrics, events, rollouts, checkpoints."""
