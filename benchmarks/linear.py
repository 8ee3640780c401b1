"""How the time of a step grows with tokens, vocabulary, k, group size and ranks.

    python benchmarks/linear.py [--output docs/pictures/linear.svg]

One thing is varied at a time, on random models, in processor seconds of one thread; medians of
five after a warm-up, the sizes taking turns. The slope is of a straight line through the
logarithms: 1 is proportional, 0 is free. What is expected: sampling and update grow as the tokens
once fixed costs are paid; the vocabulary weighs as its share of all products; k is nearly free; a
group costs less than as many prompts, since its prompt is read once. Ranks (torchrun, gloo) share a
step's prompts, and a rank's processor seconds are told, messages included and waiting not: -1 would
be a perfect share. What they wait is in `benchmarks/cost_model.py`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from step import Shape, random_qwen3, small
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tutelage.config import DDP, TopK
from tutelage.gradient import Models, accumulate
from tutelage.models.local import LocalModel
from tutelage.ops.products import speed_up
from tutelage.ranks import ALONE, Ranks
from tutelage.ranks.joining import joined
from tutelage.ranks.sharing import gather_rollouts
from tutelage.runs.interrupts import Interrupts
from tutelage.types import Prompt, RenderedPrompt, Rollout, SamplingParams

ROUNDS = 5


@dataclass(frozen=True)
class Sizes:
    """A step."""

    prompts: int = 32
    group: int = 1
    prompt_tokens: int = 8
    new_tokens: int = 48
    vocabulary: int = 4096
    k: int = 16
    ranks: int = 1


VARIED: dict[str, tuple[Sizes, str, list[int]]] = {
    "tokens": (Sizes(), "prompts", [8, 16, 32, 64, 128]),
    "vocabulary": (Sizes(), "vocabulary", [1024, 4096, 16384, 65536]),
    "k": (Sizes(), "k", [4, 16, 64, 256]),
    "group size": (Sizes(prompts=4, prompt_tokens=256), "group", [1, 2, 4, 8, 16]),
    "ranks": (Sizes(prompts=64), "ranks", [1, 2, 4]),
}


def model(shape: Shape, vocabulary: int, seed: int) -> LocalModel:
    """Random, and it never ends a completion."""
    network = random_qwen3(shape, vocabulary, seed, eos=None)
    speed_up(network)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "x": 1}, unk_token="<pad>"))
    return LocalModel(
        network, PreTrainedTokenizerFast(tokenizer_object=words), vocabulary=vocabulary
    )


def steps(sizes: Sizes, ranks: Ranks = ALONE) -> tuple[Callable[[], object], Callable[[], object]]:
    """Sampling of a step, and its scoring and update; of several ranks the share of one."""
    student, teacher = (
        model(small(128, 2), sizes.vocabulary, 1),
        model(small(256, 4), sizes.vocabulary, 2),
    )
    for parameter in teacher.model.parameters():
        parameter.requires_grad_(False)
    pair = Models(student=student, teacher=teacher, references={})
    generator = torch.Generator().manual_seed(0)
    shape = (sizes.prompts, sizes.prompt_tokens)
    ids = torch.randint(1, sizes.vocabulary, shape, generator=generator).tolist()
    prompts = [
        RenderedPrompt(prompt=Prompt(id=f"q{i}", text="x"), ids=tuple(row))
        for i, row in enumerate(ids)
    ]
    params = SamplingParams(max_new_tokens=sizes.new_tokens, temperature=1.0)
    known = {prompt.prompt.id: prompt.prompt for prompt in prompts}

    def sample() -> list[Rollout]:
        own = student.sample(ranks.deal(prompts), params, group_size=sizes.group, seed=0, step=0)
        return gather_rollouts(ranks, own, sizes.group, known)

    rollouts = sample()

    def update() -> None:
        student.model.zero_grad()
        accumulate(
            pair,
            TopK(k=sizes.k),
            rollouts,
            micro_batch_size=64,
            aggregation="token_mean",
            overlap_k=16,
            ranks=ranks,
        )
        ranks.sum_gradients(student.model.parameters())

    return sample, update


def measure(name: str) -> dict[str, list[float]]:
    """Median processor seconds at each size, of sampling and of the rest."""
    base, field, values = VARIED[name]
    sizes = [replace(base, **{field: value}) for value in values]
    if field == "ranks":
        each = [by_ranks(size.ranks) for size in sizes]
        return {phase: [taken[phase][0] for taken in each] for phase in each[0]}
    return timed([steps(size) for size in sizes])


def timed(
    calls: list[tuple[Callable[[], object], Callable[[], object]]],
) -> dict[str, list[float]]:
    """Median processor seconds of each pair's calls, the pairs taking turns."""
    taken: dict[str, list[list[float]]] = {
        "sampling": [[] for _ in calls],
        "update": [[] for _ in calls],
    }
    for turn in range(ROUNDS + 1):
        for place, pair in enumerate(calls):
            for phase, call in zip(taken, pair, strict=True):
                began = time.process_time()
                call()
                if turn:
                    taken[phase][place].append(time.process_time() - began)
    return {phase: [median(t) for t in times] for phase, times in taken.items()}


def by_ranks(count: int) -> dict[str, list[float]]:
    """The same of so many processes, each with its share of a step; the mean over them."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), __file__, "--as-rank"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise SystemExit(said.stderr[-3000:])
    return dict(json.loads(said.stdout.splitlines()[-1]))


def run_as_rank() -> None:
    """What `by_ranks` starts; the first rank prints."""
    with Interrupts() as interrupts, joined(DDP(), interrupts) as (ranks, _):
        torch.set_num_threads(1)
        own = timed([steps(VARIED["ranks"][0], ranks)])
        everyone = ranks.gather_json(own)
        if ranks.first:
            mean = {phase: [fmean(taken[phase][0] for taken in everyone)] for phase in own}
            print(json.dumps(mean), flush=True)


def slope(values: list[int], seconds: list[float]) -> float:
    """Of log seconds over log size."""
    return float(np.polyfit(np.log(values), np.log(seconds), 1)[0])


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    """A panel for each thing that was varied."""
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tutelage", "font.size": 9})
    figure, panels = plt.subplots(1, len(found), figsize=(13, 2.8), layout="constrained")
    for axes, (name, phases) in zip(panels, found.items(), strict=True):
        values = VARIED[name][2]
        for phase, seconds in phases.items():
            label = f"{phase}, slope {slope(values, seconds):.2f}"
            axes.loglog(values, seconds, "o-", label=label)
        axes.set(xlabel="prompts of a step" if name == "tokens" else name)
        axes.set_xticks(values, labels=[f"{value:,}" for value in values])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(0.05, 3)
        axes.set_yticks([0.1, 0.3, 1, 3])
        axes.legend(frameon=False, fontsize=8)
    panels[0].set(ylabel="processor seconds")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Prints the table, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--as-rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.as_rank:
        run_as_rank()
        return
    print("| varied | sizes | phase | processor seconds | slope |\n|---|---|---|---|---|")
    found = {}
    for name, (_, _, values) in VARIED.items():
        found[name] = measure(name)
        for phase, seconds in found[name].items():
            cells = [", ".join(map(str, values)), phase, ", ".join(f"{s:.3f}" for s in seconds)]
            print(f"| {name} | {' | '.join(cells)} | {slope(values, seconds):.2f} |", flush=True)
    if options.output:
        draw(found, options.output)


if __name__ == "__main__":
    main()
