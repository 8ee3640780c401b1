"""Log-probabilities at given states. All logarithms are natural."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def log_probs(logits: Float[Tensor, "*S V"], temperature: float = 1.0) -> Float[Tensor, "*S V"]:
    """log softmax(logits / temperature), computed in float32 or better."""
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}; a distribution needs one above 0")
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    if temperature != 1.0:
        logits = logits / temperature
    return logits.log_softmax(-1)


def log_softmax_(logits: Float[Tensor, "*S V"]) -> Float[Tensor, "*S V"]:
    """log softmax, in the memory of the logits."""
    return torch.log_softmax(logits, -1, out=logits)


def gather(logprobs: Float[Tensor, "*S V"], ids: Int[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The log-probability of one token id at each state."""
    return logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def entropy(logprobs: Float[Tensor, "*S V"]) -> Float[Tensor, "*S"]:
    """-sum p log p, in nats; 0 log 0 is 0."""
    return entropy_of(logprobs.exp(), logprobs)


def entropy_of(
    probs: Float[Tensor, "*S V"], logprobs: Float[Tensor, "*S V"]
) -> Float[Tensor, "*S"]:
    """The entropy of probabilities whose logarithms are at hand, in nats."""
    # A product of 0 and any finite number is 0, and of 0 and -inf is none.
    terms = logprobs.clamp_min(torch.finfo(logprobs.dtype).min)
    return -terms.mul_(probs).sum(-1)


def log_complement(
    logprobs: Float[Tensor, "*S K"], dim: int = -1, smallest: float | None = None
) -> Float[Tensor, "*S"]:
    """log(1 - sum exp(logprobs)): the mass of everything not listed.

    The difference of two numbers near 1 is only known to the rounding of the
    dtype, so the mass is floored at that (`smallest`, by default eps^2 so that
    its logarithm and gradient stay finite).
    """
    floor = torch.finfo(logprobs.dtype).eps ** 2 if smallest is None else smallest
    return (1 - logprobs.exp().sum(dim)).clamp_min(floor).log()
