"""Pure tensor mathematics: tensors in, tensors out, no config, model or logger."""
