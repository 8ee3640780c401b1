"""What doses of a cold start and self-teachers do in the lab, seed by seed.

    nice -n 5 python benchmarks/rescue_lab.py FOLDER --seeds 11 12 13 14 31
    python benchmarks/rescue_lab.py FOLDER --table

Models, prompts and finished arms stay in FOLDER; a killed run goes on where it was. Each seed
trains its own models (lab/kept.py), draws its own prompts and samples. Accuracy is of one
sample at temperature 1 on 500 held-out problems.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from results import read_rows

from tutelage.config import Config, DataConfig, ModelConfig, parse_config
from tutelage.evaluation import evaluate_model
from tutelage.lab.embedded import VERIFIER, model_path
from tutelage.lab.kept import KeptModels
from tutelage.lab.tasks import RunningTotal, write_prompts
from tutelage.ops.intervals import mean_interval
from tutelage.rescue.cold_start import cold_start
from tutelage.rescue.controls import controls
from tutelage.rescue.controls_summary import summary
from tutelage.training import train

HELD_OUT = 500
OPD = 100
DOSES = (100, 250)


class Seed:
    """One seed's models, prompts and arms."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed = folder / f"seed-{seed}", seed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results = self.folder / "results.jsonl"
        task = RunningTotal()
        self.models = KeptModels(folder / "models", task)
        if not (self.folder / "held.jsonl").exists():
            write_prompts(self.folder / "train.jsonl", task.train_prompts(22_400, seed))
            write_prompts(self.folder / "held.jsonl", task.eval_prompts(HELD_OUT))

    def model(self, name: str) -> Path:
        """One of the seed's models, trained when it is first asked for."""
        return self.models.path(name, self.seed)

    def config(self, place: str, start: str | Path, taught_by: Any, **sections: Any) -> Config:
        """The settings of an arm; a student by name is one of the seed's models."""
        path = start if isinstance(start, Path) else self.model(start)
        tree: dict[str, Any] = {
            "student": {"path": str(path)},
            "teacher": {"path": str(self.model(taught_by))}
            if isinstance(taught_by, str)
            else taught_by,
            "data": {
                "prompts": str(self.folder / "train.jsonl"),
                "eval_prompts": str(self.folder / "held.jsonl"),
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": 64, "max_new_tokens": 28},
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
            "evaluation": {"every": 0},
            "run": {
                "dir": str(self.folder / place),
                "steps": OPD,
                "seed": self.seed,
                "save_every": 0,
                "record_rollouts": 0,
            },
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    def once(self, arm: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The result of an arm, from the file where it is done."""
        for record in read_rows(self.results):
            if record["arm"] == arm:
                return record
        started, used = time.monotonic(), time.process_time()
        record = {
            "arm": arm,
            "seed": self.seed,
            **work(),
            "seconds": round(time.monotonic() - started, 1),
            "cpu_s": round(time.process_time() - used, 1),
        }
        with self.results.open("a") as stream:
            stream.write(json.dumps(record) + "\n")
        print(f"seed {self.seed}  {arm}  {record}", flush=True)
        return record

    def accuracy(self, model: str | Path, template: str | None = None) -> float:
        """Of a model under a template."""
        path = model if isinstance(model, Path) else self.model(model)
        settings = ModelConfig(path=str(path), template={"template": template} if template else {})
        data = DataConfig(prompts=str(self.folder / "held.jsonl"), verifier=VERIFIER)
        found = evaluate_model(
            settings, data, samples=1, max_new_tokens=28, temperature=1.0, top_p=1.0
        )
        return float(found["accuracy"])

    def distil(self, arm: str, start: str | Path, taught_by: Any, **sections: Any) -> Path:
        """Train; the last weights, since the best would be chosen on the held-out questions."""
        config = self.config(f"runs/{arm}", start, taught_by, **sections)
        shutil.rmtree(config.run.dir, ignore_errors=True)
        result = train(config)
        assert result.outcome == "finished"
        return result.checkpoint

    def imitate(self, steps: int) -> Path:
        """A cold start of so many steps on 800 answers."""
        output = self.folder / "runs" / f"cold-start-{steps}"
        if not (output / "summary.json").exists():
            settings = {
                "questions": 800,
                "steps": steps,
                "batch_size": 32,
                "lr": 1e-3,
                "right_only": True,
                "check": False,
                "patience": 0,
                "every": steps,
            }
            config = self.config("unused", "student", "incompatible", cold_start=settings)
            cold_start(config, output, overwrite=output.exists())
        return output / "checkpoints" / f"step-{steps}"


def run_cold_start(seed: Seed) -> None:
    """Incompatible teacher: with and without imitation, and what equal steps of either give."""
    for name in ("student", "incompatible"):
        seed.once(f"start/{name}", lambda name=name: {"accuracy": seed.accuracy(name)})
    for steps in (OPD, OPD + DOSES[0]):
        arm = f"opd_{steps}"
        seed.once(
            arm,
            lambda arm=arm, steps=steps: {
                "accuracy": seed.accuracy(
                    seed.distil(arm, "student", "incompatible", run={"steps": steps})
                )
            },
        )
    for dose in DOSES:
        for steps in (dose, dose + OPD):
            seed.once(
                f"sft_{steps}",
                lambda steps=steps: {"accuracy": seed.accuracy(seed.imitate(steps))},
            )
        arm = f"sft_{dose}_opd_{OPD}"
        seed.once(
            arm,
            lambda arm=arm, dose=dose: {
                "accuracy": seed.accuracy(seed.distil(arm, seed.imitate(dose), "incompatible"))
            },
        )


def both(seed: Seed, model: str | Path) -> dict[str, float]:
    """Accuracy under either template."""
    return {f"accuracy_{t}": seed.accuracy(model, t) for t in "XY"}


def run_self(seed: Seed) -> None:
    """A student that is able under X alone teaches itself under Y, reading X as a teacher."""
    seed.once("start/gated", lambda: both(seed, "gated"))
    for kind in ("initial", "ema", "current"):
        arm = f"self_{kind}"

        def work(arm: str = arm, kind: str = kind) -> dict[str, float]:
            teacher = {"type": kind, "template": {"template": "X"}}
            reads_y = {"template": {"template": "Y"}}
            trained = seed.distil(arm, "gated", teacher, student=reads_y)
            return both(seed, trained)

        seed.once(arm, work)


EXPERIMENTS = {"cold_start": run_cold_start, "self": run_self}


def run_controls(folder: Path) -> None:
    """`rescue controls` of the embedded compatible pair, on the lab's prompts of the first seed."""
    place = sorted(folder.glob("seed-*"))[0]
    config = parse_config(
        {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {
                "prompts": str(place / "train.jsonl"),
                "eval_prompts": str(place / "held.jsonl"),
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": 64, "max_new_tokens": 28},
            "optimizer": {"lr": 1e-3, "betas": [0.9, 0.95]},
            "run": {"steps": OPD, "save_every": 0, "record_rollouts": 0},
        }
    )
    output = folder / "controls"
    found = controls(config, output, seeds=5, resume=(output / "config.yaml").exists())
    print(summary(found))


def table(folder: Path) -> None:
    """Mean of each arm with the 95 % interval over seeds, and paired differences."""
    records = [
        json.loads(line)
        for file in sorted(folder.glob("seed-*/results.jsonl"))
        for line in file.read_text().splitlines()
    ]
    columns: dict[str, dict[int, float]] = {}
    for record in records:
        for key in ("accuracy", "accuracy_X", "accuracy_Y"):
            if key in record:
                name = record["arm"] + key.removeprefix("accuracy")
                columns.setdefault(name, {})[record["seed"]] = record[key]
    for name, values in columns.items():
        seeds = " ".join(f"{s}:{v:.3f}" for s, v in sorted(values.items()))
        print(f"{name:24} {told(list(values.values()))}   {seeds}")
    print()
    for one, other in PAIRS:
        if one in columns and other in columns:
            shared = sorted(columns[one].keys() & columns[other].keys())
            values = [columns[one][s] - columns[other][s] for s in shared]
            print(f"{one} - {other}: {told(values, sign='+')}")


PAIRS = [
    *(
        (f"sft_{d}_opd_{OPD}", other)
        for d in DOSES
        for other in (f"sft_{d + OPD}", f"sft_{d}", f"opd_{d + OPD}")
    ),
]


def told(values: Sequence[float], sign: str = "") -> str:
    """Mean and 95 % interval over seeds."""
    interval = mean_interval(values)
    mean = f"{fmean(values):{sign}.3f}"
    if interval is None:
        return mean
    return f"{mean} [{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}] n={len(values)}"


def main() -> None:
    """Run what is not done, or show what is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[11, 12, 13, 14, 31])
    names = [*EXPERIMENTS, "controls"]
    parser.add_argument("--only", choices=names, nargs="+", default=names)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        for name in arguments.only:
            for number in arguments.seeds if name != "controls" else ():
                EXPERIMENTS[name](Seed(arguments.folder, number))
        if "controls" in arguments.only:
            run_controls(arguments.folder)
    table(arguments.folder)


if __name__ == "__main__":
    main()
