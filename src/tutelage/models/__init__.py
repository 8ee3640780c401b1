"""Models behind two protocols: `Sampler` draws rollouts, `Scorer` judges them."""
