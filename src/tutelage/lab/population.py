"""A generated population of pairs: each is checked, then trained as it is.

Pairs are numbered. Ten of them, one of each kind, share a group's models: number `n` is kind
`n % 10` of group `n // 10`. What a group's models are trained on is drawn from the task and the
group alone, so any pair can be made again without the others.
"""

import shutil
from dataclasses import dataclass, replace

import numpy as np

from tutelage.diagnose.checking import check
from tutelage.lab import arms
from tutelage.lab.arms import Distil, Numbers, Place
from tutelage.lab.models import Size, Training
from tutelage.lab.tasks import ModTotal, SolutionStyle, Task
from tutelage.ops.intervals import difference_interval
from tutelage.runs.directory import read_lines
from tutelage.training import train

POPULATION = arms.Size(steps=160, every=80)
"""Distillation of a pair: the amount that the suites' verdicts are made of."""
KEPT = ("capability", "rescue", "rescue_helps_until", "familiar", "kinds", "agreement")
"""What is kept of a look of `check`, besides its verdict and the alignment as a whole."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way in which student and teacher may be related."""

    says: str
    student: str
    teacher: str


KINDS: dict[str, Kind] = {
    "post_trained": Kind(says="the student after post-training", student="base", teacher="post"),
    "other_pattern": Kind(says="able in the other pattern", student="base", teacher="backward"),
    "dialled": Kind(
        says="the student has seen a little of the other pattern",
        student="dialled",
        teacher="backward",
    ),
    "same_data": Kind(says="larger, the student's data", student="base", teacher="larger"),
    "unrelated": Kind(
        says="able in the student's pattern, trained apart", student="base", teacher="fresh"
    ),
    "noisy": Kind(
        says="the student with fewer errors, or about as many", student="base", teacher="noisy"
    ),
    "reverse": Kind(says="the student's own past", student="post", teacher="base"),
    "gated": Kind(says="able under one template", student="base", teacher="gated"),
    "both_patterns": Kind(says="writes both patterns", student="base", teacher="both"),
    "imitated": Kind(
        says="the student has imitated the other pattern shortly",
        student="imitated",
        teacher="backward",
    ),
}
"""The families that a predictor leaves out one by one."""


@dataclass(frozen=True, kw_only=True)
class Pair(Distil):
    """Check of a pair, and its distillation."""

    kind: str
    """A name of `KINDS`."""

    def run(self, place: Place) -> Numbers:
        """`look`, `verdict` of `check`; accuracies `before`, `after`, `teacher`; `gain`: its 95 %.

        Accuracies are of one sample a held-out problem at temperature 1; the interval of the gain
        is paired by problem.
        """
        config = self.config(place)
        found = check(config).looks[0]
        run = train(config, overwrite=True).run
        records = [r for r in read_lines(run / "metrics.jsonl") if r["kind"] == "eval"]
        answered = [
            [line["accuracy"] for line in read_lines(run / "eval" / f"step-{r['step']}.jsonl")]
            for r in records
        ]
        shutil.rmtree(run)
        look = found.to_dict()
        kept = {key: look[key] for key in KEPT if key in look}
        if found.alignment is not None:
            kept["alignment"] = {k: v for k, v in look["alignment"].items() if k != "by"}
        return {
            "kind": self.kind,
            "verdict": found.verdict.word,
            "look": kept,
            "curve": [record["accuracy"] for record in records],
            "before": records[0]["accuracy"],
            "after": records[-1]["accuracy"],
            "teacher": records[0]["teacher/accuracy"],
            "gain": list(difference_interval(answered[-1], answered[0])),
        }


def pair(number: int, task: Task) -> tuple[Pair, int]:
    """The pair of this number, and the seed of its group."""
    group, place = divmod(number, len(KINDS))
    name = list(KINDS)[place]
    kind, settings = KINDS[name], {}
    if name == "gated":
        template = str(_draws(task, group, "template").choice(["X", "Y"]))
        both = {"template": {"template": template}}
        settings = {"student": both, "teacher": both}
    made = Pair(student=kind.student, teacher=kind.teacher, settings=settings, kind=name)
    return made, seed_of(group)


def seed_of(group: int) -> int:
    """Of models, prompts and samples; apart from the seeds of the suites."""
    return 1000 + group


def group_recipes(group: int, task: Task, *, short: bool = False) -> dict[str, Training]:
    """How the models of one group are trained; drawn anew for every group.

    `post` and `both` may be early checkpoints, `noisy` and `backward` may err, `dialled` and
    `imitated` differ in how much of the other pattern they know.
    """
    rng = _draws(task, group, "models")
    mod = isinstance(task, ModTotal)
    skill = float(rng.uniform(0.05, 0.45)) + (0.1 if mod else 0.0)
    weak, size = SolutionStyle(skill=skill), Size(width=int(rng.choice([64, 80])))
    able = Size(width=96, heads=3) if rng.random() < 0.5 else Size()
    fresh = Training(steps=1000 if mod else 850, size=able)

    def later(start: str, style: SolutionStyle, steps: int, lr: float = 1.5e-3) -> Training:
        return Training(start=start, style=style, steps=steps, lr=lr, curriculum=False)

    share = float(np.exp(rng.uniform(np.log(0.02), np.log(0.3))))
    recipes = {
        "base": Training(style=weak, size=size, steps=1000 if mod else 700),
        "post": later(
            "base",
            SolutionStyle(hard_share=float(rng.uniform(0.3, 0.7)), templates="X"),
            int(rng.choice([40, 100, 200, 300])),
            2e-3,
        ),
        "backward": replace(
            fresh,
            style=SolutionStyle(pattern="backward", skill=float(rng.choice([1.0, 1.0, 0.8]))),
        ),
        "dialled": later("base", SolutionStyle(skill=skill, other_pattern_share=share), 250),
        "larger": Training(style=weak, size=Size(width=96, heads=3), steps=1000 if mod else 700),
        "fresh": replace(fresh, style=SolutionStyle(skill=float(rng.choice([1.0, 1.0, 0.9])))),
        "noisy": later("base", SolutionStyle(skill=float(rng.uniform(0.5, 0.9))), 200),
        "gated": later(
            "base",
            SolutionStyle(hard_share=0.55, gate="X", skill_outside=skill),
            450,
            2e-3,
        ),
        "both": later(
            "backward",
            SolutionStyle(other_pattern_share=float(rng.uniform(0.3, 0.9))),
            int(rng.choice([150, 300])),
        ),
        "imitated": later(
            "base", SolutionStyle(pattern="backward"), int(rng.choice([15, 30, 60, 120]))
        ),
    }
    return {n: replace(t, steps=3) for n, t in recipes.items()} if short else recipes


def _draws(task: Task, group: int, what: str) -> np.random.Generator:
    return np.random.default_rng([group, task.modulus, *what.encode()])
