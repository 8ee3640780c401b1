"""Drawing tokens by inverse transform, so that one uniform number decides one token."""

import hashlib

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tutelage.ops.logprobs import gather, log_probs


def uniforms(count: int, *key: int | str) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) that depend on the key alone.

    The generator is Philox keyed by a hash of (seed, step, prompt id, sample
    index): neither the order of a batch, nor a restart, nor the number of
    processes chooses a sample.
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little"))).random(count)


def draw(
    logits: Float[Tensor, "B V"],
    uniform: Float[Tensor, "B"],
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[Int[Tensor, "B"], Float[Tensor, "B"]]:
    """One token for each row, and its log-probability before top-p and top-k.

    Temperature 0 takes the most likely token (the lower id of equals) and gives
    its log-probability at temperature 1. A token of probability 0 is never drawn.
    """
    if temperature == 0:
        ids = logits.argmax(-1)
        return ids, gather(log_probs(logits), ids)
    logprobs = log_probs(logits, temperature)
    if top_p >= 1.0 and not 0 < top_k < logits.shape[-1]:
        ids = _invert(logprobs.exp(), uniform)
        return ids, gather(logprobs, ids)
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    p = ordered.exp()
    keep = p.cumsum(-1) - p < top_p  # the token that crosses the mass is kept
    if top_k:
        keep[:, top_k:] = False
    places = _invert(torch.where(keep, p, 0.0), uniform)
    ids = order.gather(-1, places.unsqueeze(-1)).squeeze(-1)
    return ids, gather(logprobs, ids)


def _invert(weights: Float[Tensor, "B V"], uniform: Float[Tensor, "B"]) -> Int[Tensor, "B"]:
    """First token whose cumulative weight exceeds uniform x total."""
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1]
    goal = uniform.to(total.dtype) * total
    # Rounding may lift the goal to the total itself, past the last likely token.
    goal = torch.minimum(goal, torch.nextafter(total, torch.zeros_like(total)))
    places = torch.searchsorted(cumulative, goal.unsqueeze(-1), right=True).squeeze(-1)
    return places.clamp_max(weights.shape[-1] - 1)  # NaN weights have no such token
