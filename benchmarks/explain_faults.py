"""Does `explain` name what was planted? Runs with one fault, with two, and with none.

    python benchmarks/explain_faults.py --half development --output faults.jsonl --keep runs
    python benchmarks/explain_faults.py --output faults.jsonl --table

Every run is short (40 steps of 32 rollouts). The development half takes the embedded models and
the running total; the kept-aside half another task, other sizes and other seeds, whose models are
trained into `--models`. `--keep` holds the run directories, which `--again` explains anew.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS, ROLLOUTS, HELD_OUT = 40, 32, 200
LR = 2e-3
DEVELOPMENT, KEPT_ASIDE = "development", "kept aside"
SEEDS = {DEVELOPMENT: (1, 2, 3), KEPT_ASIDE: (31, 32, 21)}
HEALTHY = {DEVELOPMENT: range(1, 11), KEPT_ASIDE: range(41, 51)}
MILD, SEVERE = "mild", "severe"
Tree = dict[str, dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a faulty run is made."""

    folder: Path
    """For what the fault needs to write."""
    models: Path
    """Folders of student, compatible, incompatible and same_data."""
    task: Any
    """The lab task."""
    seed: int
    """Of the run."""
    stack: ExitStack
    """Closes servers at the end."""

    def copy(self, name: str = "compatible") -> Path:
        """A copy of a model to spoil, the same one for a second fault."""
        folder = self.folder / f"spoiled-{name}"
        if not folder.exists():
            shutil.copytree(self.models / name, folder)
        return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a saved model's tensors in place."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def stop_ids(place: Place, severity: str) -> Tree:
    """The teacher ends with another token (severe), or with that one half of the time."""
    from tutelage.lab.tasks import EOS, PAD

    folder = place.copy()
    words = place.task.vocabulary
    end, pad = words.index(EOS), words.index(PAD)

    def change(tensors: dict[str, Any]) -> None:
        head = tensors[HEAD]
        old = head[pad].clone()
        head[pad] = head[end]
        if severity == SEVERE:
            head[end] = old

    edit_weights(folder, change)
    stops = pad if severity == SEVERE else [pad, end]
    edit_json(folder / "config.json", lambda c: c.update(eos_token_id=stops))
    edit_json(folder / "generation_config.json", lambda c: c.update(eos_token_id=stops))
    if severity == SEVERE:
        edit_json(folder / "tokenizer_config.json", lambda c: c.update(eos_token=PAD))
    return {"teacher": {"path": str(folder)}}


def template(place: Place, severity: str) -> Tree:
    """The teacher reads prompts without the sign that asks (severe), or without their beginning."""
    from tutelage.lab.tasks import ASK, BOS

    begin, ask = ("", ASK) if severity == MILD else (BOS, "")
    path = place.folder / "teacher.jinja"
    path.write_text(f"{begin}X{{{{ messages[0].content }}}}{ask}")
    return {"teacher": {"chat_template": str(path)}}


def vocabulary(place: Place, severity: str) -> Tree:
    """The teacher's tokenizer has a token more (mild), or its head is too short for it."""
    folder = place.copy()
    rows = len(place.task.vocabulary) + (1 if severity == MILD else -2)

    def change(tensors: dict[str, Any]) -> None:
        import torch

        for name in (HEAD, EMBEDDING):
            old = tensors[name]
            tensors[name] = torch.cat([old, old[:1]])[:rows]

    edit_weights(folder, change)
    edit_json(folder / "config.json", lambda c: c.update(vocab_size=rows))
    if severity == MILD:
        edit_json(folder / "tokenizer.json", lambda t: t["model"]["vocab"].update({"?": rows - 1}))
    return {"teacher": {"path": str(folder)}}


def swapped_ids(place: Place, severity: str) -> Tree:
    """Two digits have changed places in the teacher's tokenizer, or all have."""
    folder = place.copy()

    def change(tree: Any) -> None:
        words = tree["model"]["vocab"]
        digits = [str(i) for i in (range(10) if severity == SEVERE else range(2))]
        ids = [words[d] for d in digits]
        words.update(dict(zip(digits, ids[1:] + ids[:1], strict=True)))

    edit_json(folder / "tokenizer.json", change)
    return {"teacher": {"path": str(folder)}}


def swapped_weights(place: Place, severity: str) -> Tree:
    """The teacher's weights belong to a tokenizer in which two digits, or all, are elsewhere."""
    folder = place.copy()
    first = place.task.vocabulary.index("0")
    old = [first + i for i in (range(10) if severity == SEVERE else (3, 4))]

    def change(tensors: dict[str, Any]) -> None:
        for name in (HEAD, EMBEDDING):
            tensors[name][old] = tensors[name][old[1:] + old[:1]]

    edit_weights(folder, change)
    return {"teacher": {"path": str(folder)}}


def precision(place: Place, severity: str) -> Tree:
    """The teacher's weights are bfloat16, and were rounded to float8 before that."""
    import torch

    folder = place.copy()
    if severity == SEVERE:

        def change(tensors: dict[str, Any]) -> None:
            for name, value in tensors.items():
                tensors[name] = value.to(torch.float8_e4m3fn).to(value.dtype)

        edit_weights(folder, change)
    return {"teacher": {"path": str(folder), "dtype": "bfloat16"}}


def itself(place: Place, severity: str) -> Tree:
    """The teacher is the student (severe), or the student after a change nobody can see."""
    if severity == SEVERE:
        return {"teacher": {"path": str(place.models / "student")}}
    import torch

    folder = place.copy("student")
    noise = torch.Generator().manual_seed(place.seed)

    def change(tensors: dict[str, Any]) -> None:
        for value in tensors.values():
            value += 1e-3 * value.std() * torch.randn(value.shape, generator=noise)

    edit_weights(folder, change)
    return {"teacher": {"path": str(folder)}}


def same_data(place: Place, severity: str) -> Tree:
    """A larger teacher of the student's data (mild); the same for a student past it (severe)."""
    tree: Tree = {"teacher": {"path": str(place.models / "same_data")}}
    if severity == SEVERE:
        tree["student"] = {"path": str(place.models / "compatible")}
    return tree


def pattern(place: Place, severity: str) -> Tree:
    """An able teacher that walks the other way, at a third of the learning rate (mild) or at it."""
    return {
        "teacher": {"path": str(place.models / "incompatible")},
        "optimizer": {"lr": LR if severity == SEVERE else LR / 3},
    }


def limit(place: Place, severity: str) -> Tree:
    """Answers are cut: about four of five, or two of five."""
    low, high = place.task.lengths
    lengths = [
        len(place.task.solution([0] * (n + place.task.has_start))) for n in range(low, high + 1)
    ]
    most = lengths[0] if severity == SEVERE else lengths[len(lengths) // 2]
    return {"rollout": {"max_new_tokens": most}}


def learning_rate(place: Place, severity: str) -> Tree:
    """30 times what works, or 100."""
    return {"optimizer": {"lr": (100 if severity == SEVERE else 30) * LR}}


def sampled(place: Place, severity: str) -> Tree:
    """The sampled token without bound or baseline, at the usual learning rate and at five times."""
    return {
        "objective": {"type": "sampled"},
        "optimizer": {"lr": 5 * LR if severity == SEVERE else LR},
    }


def support(place: Place, severity: str) -> Tree:
    """Two tokens, or the student's likeliest alone, and what lies outside is dropped."""
    k = 1 if severity == SEVERE else 2
    return {"objective": {"type": "top_k", "k": k, "tail": "drop"}}


def stale(place: Place, severity: str) -> Tree:
    """Rollouts are trained on 8 steps after they were drawn, or 24."""
    return {"rollout": {"delay_steps": 24 if severity == SEVERE else 8}}


def server(place: Place, severity: str) -> Tree:
    """The teacher's server answers the same everywhere (severe), or serves random weights."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "servers"))
    from fake import FakeVllm

    folder = place.copy()

    def constant(tensors: dict[str, Any]) -> None:
        tensors["model.norm.weight"] = torch.zeros_like(tensors["model.norm.weight"])

    def random(tensors: dict[str, Any]) -> None:
        noise = torch.Generator().manual_seed(place.seed)
        for name, value in tensors.items():
            if value.dim() > 1:
                tensors[name] = value.std() * torch.randn(value.shape, generator=noise)

    edit_weights(folder, constant if severity == SEVERE else random)
    served = FakeVllm(folder, max_logprobs=-1, max_model_len=128)
    place.stack.callback(served.close)
    return {"teacher": {"server": {"url": served.url}}}


FAULTS: dict[str, Callable[[Place, str], Tree]] = {
    f.__name__: f
    for f in (
        stop_ids,
        template,
        vocabulary,
        swapped_ids,
        swapped_weights,
        precision,
        itself,
        same_data,
        pattern,
        limit,
        learning_rate,
        sampled,
        support,
        stale,
        server,
    )
}
TWO = (
    ("limit", "learning_rate"),
    ("stop_ids", "precision"),
    ("stale", "learning_rate"),
    ("sampled", "limit"),
    ("template", "support"),
    ("same_data", "limit"),
)


def run_once(
    half: str, kinds: tuple[str, ...], severity: str, seed: int, models: Path, keep: Path
) -> dict[str, Any]:
    """Train one run with its faults, into `keep`."""
    import tutelage
    from tutelage.demonstration import write_prompts
    from tutelage.errors import Preempted, TutelageError
    from tutelage.lab.tasks import ModTotal, RunningTotal

    task = RunningTotal() if half == DEVELOPMENT else ModTotal()
    name = "-".join([half.replace(" ", "_"), *(kinds or ("healthy",)), severity, str(seed)])
    home = keep / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    write_prompts(home / "prompts.jsonl", task.train_prompts((STEPS + 30) * ROLLOUTS, seed))
    write_prompts(home / "held_out.jsonl", task.eval_prompts(HELD_OUT))
    tree: Tree = {
        "student": {"path": str(models / "student")},
        "teacher": {"path": str(models / "compatible")},
        "data": {
            "prompts": str(home / "prompts.jsonl"),
            "eval_prompts": str(home / "held_out.jsonl"),
            "verifier": task.verifier.model_dump(),
        },
        "rollout": {"prompts_per_step": ROLLOUTS, "max_new_tokens": task.longest_solution + 5},
        "optimizer": {"lr": LR, "betas": (0.9, 0.95)},
        "evaluation": {"every": 20},
        "run": {"dir": str(home / "run"), "steps": STEPS, "seed": seed, "save_every": 0},
    }
    row: dict[str, Any] = {"half": half, "kinds": kinds, "severity": severity, "seed": seed}
    row["home"] = name
    with ExitStack() as stack:
        place = Place(folder=home, models=models, task=task, seed=seed, stack=stack)
        for kind in kinds:
            for section, settings in FAULTS[kind](place, severity).items():
                tree[section] = tree.get(section, {}) | settings
        try:
            result = tutelage.train(tutelage.parse_config(tree))
        except Preempted:
            raise
        except TutelageError as error:
            return row | {"refused": str(error), "exit": error.exit_code}
    shutil.rmtree(home / "run" / "checkpoints")
    shutil.rmtree(home / "run" / "student")
    return row | {
        "accuracy": [result.first.get("accuracy"), result.last.get("accuracy")],
        "kl": [result.first.get("kl/reverse"), result.last.get("kl/reverse")],
    }


def planned(half: str) -> Iterator[tuple[tuple[str, ...], str, int]]:
    """Every run of a half: faults, severity, seed."""
    for seed in HEALTHY[half]:
        yield (), "none", seed
    for pair, seed in zip(TWO, SEEDS[half] * 2, strict=True):
        yield pair, MILD, seed
    for seed in SEEDS[half]:
        for kind in FAULTS:
            for severity in (MILD, SEVERE):
                yield (kind,), severity, seed


def models_of(half: str, seed: int, root: Path) -> Path:
    """The models that a run of this seed takes."""
    from tutelage.lab.embedded import ZOO

    if half == DEVELOPMENT:
        return ZOO
    known = SEEDS[half]
    return root / f"mod-total-{seed if seed in known else known[seed % len(known)]}"


def main() -> None:
    """Run what is not in the output yet, explain it, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--half", choices=(DEVELOPMENT, KEPT_ASIDE), default=DEVELOPMENT)
    parser.add_argument("--models", type=Path, default=Path("lab-models"))
    parser.add_argument("--keep", type=Path, default=Path("fault-runs"))
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    done = (
        [json.loads(line) for line in given.output.read_text().splitlines()]
        if given.output.exists()
        else []
    )
    known = {(row["half"], tuple(row["kinds"]), row["severity"], row["seed"]) for row in done}
    for kinds, severity, seed in planned(given.half):
        if (given.half, kinds, severity, seed) in known or given.only not in "+".join(kinds):
            continue
        started = time.monotonic()
        models = models_of(given.half, seed, given.models)
        row = run_once(given.half, kinds, severity, seed, models, given.keep)
        row["seconds"] = round(time.monotonic() - started, 1)
        with given.output.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(kinds, severity, seed, row.get("refused", row.get("accuracy")), flush=True)


if __name__ == "__main__":
    main()
