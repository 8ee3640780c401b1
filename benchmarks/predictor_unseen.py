"""Does what `check` expects come true for kinds of pairs that the population does not hold?

    python benchmarks/predictor_unseen.py --output runs/unseen           # goes on where it stopped
    python benchmarks/predictor_unseen.py --output runs/unseen --seeds 7 8

Every pair is made anew from a seed, checked, and trained as those of the population are.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tutelage.lab.arms import Place
from tutelage.lab.kept import KeptModels
from tutelage.lab.models import Size, Training
from tutelage.lab.population import POPULATION, Pair
from tutelage.lab.running import once
from tutelage.lab.tasks import RunningTotal, SolutionStyle
from tutelage.runs.ledger import Ledger

TASK = RunningTotal()
WEAK = SolutionStyle(skill=0.25)
RIGHT = SolutionStyle()
ABLE = Training(style=RIGHT, steps=850)


def _later(start: str, style: SolutionStyle, steps: int) -> Training:
    return Training(start=start, style=style, steps=steps, lr=2e-3, curriculum=False)


RECIPES = {
    "base": Training(style=WEAK, steps=700),
    "backward": replace(ABLE, style=SolutionStyle(pattern="backward")),
    "weak backward": Training(style=SolutionStyle(pattern="backward", skill=0.25), steps=850),
    "deeper": replace(ABLE, size=Size(layers=3)),
    "smaller": replace(ABLE, size=Size(width=48)),
    "hard only": _later("base", SolutionStyle(hard_share=0.95), 500),
    "backward after": _later("weak backward", SolutionStyle(pattern="backward"), 200),
    "turned": _later("base", SolutionStyle(pattern="backward"), 500),
    "half turned": _later("base", SolutionStyle(skill=0.25, other_pattern_share=0.5), 400),
}
# Kind -> student, teacher.
PAIRS = {
    "a deeper teacher, trained apart": ("base", "deeper"),
    "a smaller teacher, trained apart": ("base", "smaller"),
    "post-trained on hard operands alone": ("base", "hard only"),
    "the patterns swapped": ("weak backward", "deeper"),
    "the patterns swapped, post-trained": ("weak backward", "backward after"),
    "the student, turned to the other pattern": ("base", "turned"),
    "a student of both patterns": ("half turned", "deeper"),
    "reverse, from the other pattern": ("deeper", "backward"),
}


def main() -> None:
    """Every pair once, and a line of a table for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[71])
    args = parser.parse_args()
    import torch

    from tutelage.diagnose.prediction import features_of, predict

    torch.set_num_threads(1)
    (args.output / "models").mkdir(parents=True, exist_ok=True)
    models = KeptModels(args.output / "models", TASK, recipes=RECIPES)
    ledger = Ledger(args.output / "pairs.jsonl")
    print("| seed | pair | before -> after, teacher | expected | happened | held |")
    print("|---|---|---|---|---|---|", flush=True)
    for seed in args.seeds:
        for kind, (student, teacher) in PAIRS.items():
            arm = Pair(student=student, teacher=teacher, kind=kind)
            place = Place(
                models=models, seed=seed, size=POPULATION, folder=args.output / f"seed-{seed}"
            )
            found = once(ledger, kind, arm, place, lambda record: None)
            told = predict(features_of(found["look"]))
            assert told is not None
            (low, high), gain = told.interval, found["after"] - found["before"]
            outside = "" if told.known else ", outside what I know"
            print(
                f"| {seed} | {kind} | {found['before']:.2f} -> {found['after']:.2f}, "
                f"{found['teacher']:.2f} | {told.gain:+.2f} [{low:+.2f}, {high:+.2f}]{outside} | "
                f"{gain:+.2f} | {'yes' if low <= gain <= high else 'no'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
