"""Does `explain` name what was planted? Runs with one fault, with two, and with none.

    python benchmarks/explain_faults.py --output faults.jsonl --keep runs        # resumes
    python benchmarks/explain_faults.py --output faults.jsonl --half 'kept aside' --models models
    python benchmarks/explain_faults.py --output faults.jsonl --table

Every run is short (40 steps of 32 rollouts). The development half takes the embedded models and
the running total; the kept-aside half another task, other sizes and other seeds; the fresh one,
for rules that changed after that, other seeds and two more sets of models. Models are trained into
`--models`. `--keep` holds the run directories, which `--again` explains anew.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results import read_rows

STEPS, ROLLOUTS, HELD_OUT = 40, 32, 200
LR = 2e-3
DEVELOPMENT, KEPT_ASIDE, FRESH = HALVES = ("development", "kept aside", "fresh")
SEEDS = {DEVELOPMENT: (1, 2, 3), KEPT_ASIDE: (31, 32, 21), FRESH: (112, 113, 131)}
HEALTHY = {DEVELOPMENT: range(1, 11), KEPT_ASIDE: range(41, 51), FRESH: range(161, 171)}
RUNNING = (12, 13)  # seeds whose models solve the running total; the others' the mod total
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


def narrow(place: Place, severity: str) -> Tree:
    """Four of the student's tokens, or its likeliest alone, and a bucket for the rest."""
    return {"objective": {"type": "top_k", "k": 1 if severity == SEVERE else 4}}


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
        narrow,
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
    from tutelage.errors import Preempted, TutelageError
    from tutelage.lab.tasks import ModTotal, RunningTotal, write_prompts

    task = (
        RunningTotal() if half == DEVELOPMENT or model_seed(half, seed) in RUNNING else ModTotal()
    )
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


def model_seed(half: str, seed: int) -> int:
    """Which models the run of a seed takes; fresh runs from 100 on."""
    known = SEEDS[half]
    return (seed if seed in known else known[seed % len(known)]) % 100


def models_of(half: str, seed: int, root: Path) -> Path:
    """The models that a run of this seed takes, trained where they are not there yet."""
    from tutelage.lab.embedded import ZOO
    from tutelage.lab.models import Size
    from tutelage.lab.pairs import PairSpec, mod_total_models
    from tutelage.lab.tasks import ModTotal

    if half == DEVELOPMENT:
        return ZOO
    seed = model_seed(half, seed)
    made = root / f"{'running' if seed in RUNNING else 'mod'}-total-{seed}"
    if made.exists():
        return made
    if seed in RUNNING:
        return train_models(PairSpec(), seed, made)
    small, large = {
        31: (Size(width=96, heads=3), Size(width=128, heads=4)),
        32: (Size(layers=3), Size(width=96, layers=3, heads=3)),
        21: (Size(), Size(width=96, heads=3)),
    }[seed]
    models = mod_total_models()
    models |= {name: replace(models[name], size=small) for name in ("student", "incompatible")}
    models["same_data"] = replace(models["same_data"], size=large)
    return train_models(PairSpec(task=ModTotal(), models=models), seed, made)


def train_models(spec: Any, seed: int, made: Path) -> Path:
    """The models of a spec, saved into a folder that is there whole or not at all."""
    from tutelage.lab.embedded import build

    made.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent) as temporary:
        build(Path(temporary) / "models", spec=spec, seed=seed)
        (Path(temporary) / "models").rename(made)
    return made


# --- what explain says of them -------------------------------------------------------------------

NAMED = {
    "swapped_weights": "broken_teacher",
    "itself": "same_model",
    "same_data": "no_new_knowledge",
    "pattern": "thinking_pattern",
    "limit": "response_limit",
    "sampled": "reward_tail",
    "support": "truncated_support",
    "narrow": "narrow_support",
    "stale": "stale_rollouts",
    "server": "broken_teacher",
}
"""The cause that names a fault, where it is called otherwise."""
REFUSED = {"vocabulary": ("token ids", "rows"), "swapped_ids": ("token ids",)}
"""What the refusal of a pair that cannot be combined must speak of."""


def explained(row: dict[str, Any], keep: Path) -> dict[str, Any]:
    """The row with the causes that are found in its run."""
    import tutelage

    if "refused" in row:
        return row
    found = tutelage.explain(keep / row["home"] / "run")
    causes = [[cause.name, cause.confidence] for cause in found.causes]
    return row | {"outcome": found.history.outcome, "causes": causes}


def place_of(kind: str, row: dict[str, Any]) -> int | None:
    """Rank of the planted cause, from 1; a refusal that names it counts as first."""
    if "refused" in row:
        return 1 if any(word in row["refused"] for word in REFUSED.get(kind, ())) else None
    names = [name for name, _ in row["causes"]]
    wanted = NAMED.get(kind, kind)
    return names.index(wanted) + 1 if wanted in names else None


def table(rows: list[dict[str, Any]]) -> str:
    """What was ranked first for each fault, the two-cause runs, and the healthy ones."""
    lines = [
        "| planted | runs | first | in three | sure | ranked first |",
        "|---|---|---|---|---|---|",
    ]
    total = [0, 0, 0]
    for kind in FAULTS:
        mine = [row for row in rows if row["kinds"] == [kind]]
        if not mine:
            continue
        places = [place_of(kind, row) for row in mine]
        named = [(row, NAMED.get(kind, kind)) for row in mine]
        counts = [len(mine), sum(p == 1 for p in places), sum(p in (1, 2, 3) for p in places)]
        total = [a + b for a, b in zip(total, counts, strict=True)]
        firsts = [
            "refused" if "refused" in row else ":".join(row["causes"][0]) if row["causes"] else "-"
            for row in mine
        ]
        sure = sum("refused" in row or row["causes"][:1] == [[name, "high"]] for row, name in named)
        told = ", ".join(f"{name} {firsts.count(name)}" for name in dict.fromkeys(firsts))
        lines.append(f"| {kind} | {counts[0]} | {counts[1]} | {counts[2]} | {sure} | {told} |")
    lines.append(f"| all | {total[0]} | {total[1]} | {total[2]} | | |")
    lines += ["", "| two planted | ranks | found |", "|---|---|---|"]
    for row in (row for row in rows if len(row["kinds"]) == 2):
        ranks = ", ".join(str(place_of(kind, row)) for kind in row["kinds"])
        found = ", ".join(f"{name} ({confidence})" for name, confidence in row["causes"])
        lines.append(f"| {' and '.join(row['kinds'])} | {ranks} | {found} |")
    healthy = [row for row in rows if not row["kinds"]]
    sure = sum(any(confidence == "high" for _, confidence in row["causes"]) for row in healthy)
    said = [name for row in healthy for name, confidence in row["causes"] if confidence != "high"]
    other = ", ".join(f"{name} {said.count(name)}" for name in dict.fromkeys(said)) or "nothing"
    lines += [
        "",
        f"healthy: {len(healthy)} runs, {sure} with a high-confidence cause; below: {other}",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is not in the output yet, explain it, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--half", choices=HALVES, default=DEVELOPMENT)
    parser.add_argument("--models", type=Path, default=Path("lab-models"))
    parser.add_argument("--keep", type=Path, default=Path("fault-runs"))
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    done = read_rows(given.output)
    if given.again:
        done = [explained(row, given.keep) for row in done]
        given.output.write_text("".join(json.dumps(row) + "\n" for row in done))
    if given.table:
        print(table([row for row in done if row["half"] == given.half]))
    if given.again or given.table:
        return
    known = {(row["half"], tuple(row["kinds"]), row["severity"], row["seed"]) for row in done}
    for kinds, severity, seed in planned(given.half):
        if (given.half, kinds, severity, seed) in known:
            continue
        started = time.monotonic()
        models = models_of(given.half, seed, given.models)
        row = explained(run_once(given.half, kinds, severity, seed, models, given.keep), given.keep)
        row["seconds"] = round(time.monotonic() - started, 1)
        with given.output.open("a") as stream:
            stream.write(json.dumps(row) + "\n")
        print(kinds, severity, seed, row.get("refused", row.get("causes")), flush=True)


if __name__ == "__main__":
    main()
