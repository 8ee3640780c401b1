"""Loss, backward and head gradient: time and memory against dense autograd and TRL.

    pip install trl==1.16.0        # in an environment with tutelage
    python benchmarks/loss.py      # prints the tables of docs/benchmarks.md

Times: all methods take turns in one process, medians after one warm-up round.
Memory: one process a method; peak resident memory during loss and backward over
what inputs and weights take. The floor is the matrix products alone: three with
the student's head, one with the teacher's, at the machine's own rate for such
products, measured in the same run.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage import config as c
from tutelage.objective import logit_gradient, token_losses
from tutelage.ops.projection import Head, sweep


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison."""

    vocabulary: int
    rows: int
    student_width: int
    teacher_width: int


SMALL = Case(32_000, 1024, 576, 1024)
LARGE = Case(151_936, 4096, 1024, 2560)
LARGE_FEW_ROWS = Case(151_936, 256, 1024, 2560)

OBJECTIVES: dict[str, c.Objective] = {
    "full reverse_kl": c.Full(),
    "full jsd 0.5": c.Full(divergence=c.JSD()),
    "student 16 bucket": c.TopK(),
    "union 16 bucket": c.TopK(support="union"),
    "sampled": c.Sampled(),
}
TRL_BETA = {"full reverse_kl": 1.0, "full jsd 0.5": 0.5}


@dataclass
class Inputs:
    """Random states and heads of one case."""

    hidden: Tensor
    weight: Tensor
    teacher_hidden: Tensor
    teacher_weight: Tensor
    sampled: Tensor

    @classmethod
    def make(cls, case: Case) -> "Inputs":
        """Scaled so that logits have a standard deviation of 2."""
        generator = torch.Generator().manual_seed(0)

        def normal(rows: int, width: int, scale: float) -> Tensor:
            return torch.randn(rows, width, generator=generator).mul_(scale)

        return cls(
            normal(case.rows, case.student_width, 1.0).requires_grad_(),
            normal(
                case.vocabulary, case.student_width, 2 / case.student_width**0.5
            ).requires_grad_(),
            normal(case.rows, case.teacher_width, 1.0),
            normal(case.vocabulary, case.teacher_width, 2 / case.teacher_width**0.5),
            torch.randint(0, case.vocabulary, (case.rows,), generator=generator),
        )

    def clear(self) -> None:
        """Forget gradients."""
        self.hidden.grad = self.weight.grad = None


def ours(inputs: Inputs, objective: c.Objective) -> float:
    """The chunked sweep, as training runs it."""
    head, teacher = Head(inputs.weight), Head(inputs.teacher_weight)
    coefficients = torch.full((len(inputs.hidden),), 1 / len(inputs.hidden))

    def visit(rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        p = logits.sub_(logits.logsumexp(-1, keepdim=True))
        q = teacher.logits(inputs.teacher_hidden[rows])
        q = q.sub_(q.logsumexp(-1, keepdim=True))
        weights = coefficients[rows]
        output, gradient = logit_gradient(objective, p, q, inputs.sampled[rows], weights)
        return (output.losses * weights).sum(), gradient

    loss = sweep(inputs.hidden, head, visit)
    loss.backward()
    return loss.item()


def dense(inputs: Inputs, objective: c.Objective) -> float:
    """Both logits in full, and autograd."""
    p = (inputs.hidden @ inputs.weight.T).log_softmax(-1)
    with torch.no_grad():
        q = (inputs.teacher_hidden @ inputs.teacher_weight.T).log_softmax(-1)
    loss = token_losses(objective, p, q, inputs.sampled).losses.mean()
    loss.backward()
    return loss.item()


def trl(inputs: Inputs, beta: float) -> float:
    """TRL's chunked divergence, which also gives the student's entropy."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    values, _ = ChunkedDivergenceFunction.apply(
        inputs.hidden, inputs.weight, None, inputs.teacher_hidden, inputs.teacher_weight, None, beta
    )
    loss = values.mean()
    loss.backward()
    return loss.item()


def products(inputs: Inputs) -> float:
    """The floor: four matrix products in one chunk-sized buffer."""
    size = max(16, 2**24 // len(inputs.weight))
    gradient = torch.zeros_like(inputs.weight)
    with torch.no_grad():
        for start in range(0, len(inputs.hidden), size):
            states = inputs.hidden[start : start + size]
            logits = states @ inputs.weight.T
            inputs.teacher_hidden[start : start + size] @ inputs.teacher_weight.T
            logits @ inputs.weight
            gradient.addmm_(logits.T, states)
    return 0.0


def methods(name: str, with_dense: bool) -> dict[str, Callable[[Inputs], float]]:
    """The methods that compute one objective."""
    objective = OBJECTIVES[name]
    found: dict[str, Callable[[Inputs], float]] = {
        "floor": products,
        "tutelage": lambda inputs: ours(inputs, objective),
    }
    if with_dense:
        found["dense"] = lambda inputs: dense(inputs, objective)
    if name in TRL_BETA:
        found["trl"] = lambda inputs: trl(inputs, TRL_BETA[name])
    return found


def time_all(
    case: Case, names: list[str], rounds: int, with_dense: bool
) -> list[dict[str, object]]:
    """Median seconds of every method, taking turns."""
    inputs = Inputs.make(case)
    rows: list[dict[str, object]] = []
    for name in names:
        chosen = methods(name, with_dense)
        seconds: dict[str, list[float]] = {method: [] for method in chosen}
        losses: dict[str, float] = {}
        for turn in range(rounds + 1):
            for method, run in chosen.items():
                started = time.perf_counter()
                losses[method] = run(inputs)
                if turn:
                    seconds[method].append(time.perf_counter() - started)
                inputs.clear()
        losses.pop("floor")
        spread = max(losses.values()) - min(losses.values())
        assert spread < 1e-3 * max(1, max(losses.values())), losses  # the same work was done
        medians = {method: statistics.median(s) for method, s in seconds.items()}
        rows.append(
            {"objective": name, **{m: round(s, 2) for m, s in medians.items()}}
            | {
                f"/{m}": round(medians["tutelage"] / s, 2)
                for m, s in medians.items()
                if m != "tutelage"
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    return rows


def peak_memory(case: Case, name: str, method: str) -> None:
    """Print the peak memory of one method in MiB; run in a process of its own."""
    inputs = Inputs.make(case)
    run = methods(name, True)[method]
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))  # thread pools and workspaces
    with open("/proc/self/clear_refs", "w") as stream:
        stream.write("5")  # resets the high-water mark
    before = _status("VmRSS")
    started = time.perf_counter()
    run(inputs)
    seconds = time.perf_counter() - started
    print(json.dumps({"MiB": round((_status("VmHWM") - before) / 1024), "s": round(seconds, 1)}))


def _status(key: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) for line in stream if line.startswith(key + ":"))


def main() -> None:
    """Time, then memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["small", "large", "memory"])
    parser.add_argument("--memory", nargs=2, metavar=("OBJECTIVE", "METHOD"))
    arguments = parser.parse_args()
    if arguments.memory:
        peak_memory(LARGE, *arguments.memory)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if arguments.only in (None, "small"):
        print(SMALL)
        time_all(SMALL, list(OBJECTIVES), arguments.rounds, with_dense=True)
    if arguments.only in (None, "large"):
        print(LARGE_FEW_ROWS)
        time_all(LARGE_FEW_ROWS, list(OBJECTIVES), arguments.rounds, with_dense=True)
    if arguments.only in (None, "memory"):
        print(LARGE)
        for name, method in (
            ("full reverse_kl", "tutelage"),
            ("full reverse_kl", "trl"),
            ("full jsd 0.5", "tutelage"),
            ("full jsd 0.5", "trl"),
            ("union 16 bucket", "tutelage"),
            ("sampled", "tutelage"),
        ):
            command = [sys.executable, __file__, "--memory", name, method]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            print(name, method, result.stdout.strip(), flush=True)


if __name__ == "__main__":
    main()
