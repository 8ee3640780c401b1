"""Rollouts from a server: one request a sample, each with a seed of its own."""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence

from tutelage.models.served.fleet import Fleet
from tutelage.models.served.server import Server
from tutelage.types import RenderedPrompt, Rollout, SamplingParams


def sample(
    server: Server | Fleet,
    prompts: Sequence[RenderedPrompt],
    params: SamplingParams,
    *,
    group_size: int,
    seed: int,
    step: int,
    only: Callable[[str, int], bool],
    stops: frozenset[int],
    vocabulary: int,
    decode: Callable[[Iterable[int]], str],
    policy_step: int,
) -> list[Rollout]:
    """`group_size` rollouts of each prompt, prompt by prompt.

    A server's log-probabilities are those at temperature 1; at another sampling temperature
    the rollouts' are unknown (NaN), and at 0 they are as in process.
    """
    jobs = [
        (prompt, index)
        for prompt in prompts
        for index in range(group_size)
        if only(prompt.prompt.id, index)
    ]

    def draw(server: Server, job: tuple[RenderedPrompt, int]) -> Rollout:
        prompt, index = job
        own = request_seed(seed, step, prompt.prompt.id, index)
        drawn = server.sample(prompt.ids, params, own, stops, vocabulary)
        known = params.temperature in (0.0, 1.0)
        return Rollout(
            prompt=prompt.prompt,
            index=index,
            prompt_ids=prompt.ids,
            teacher_prompt_ids=prompt.teacher_ids,
            completion_ids=drawn.ids,
            logprobs=drawn.logprobs if known else (math.nan,) * len(drawn.ids),
            finish_reason=drawn.finish_reason,
            text=decode(drawn.ids),
            policy_step=policy_step,
        )

    return server.map(draw, jobs)


def request_seed(*key: int | str) -> int:
    """A seed that depends on (seed, step, prompt id, sample index) alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # vLLM takes a signed 64-bit number
