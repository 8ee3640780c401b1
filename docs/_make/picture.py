"""The landing page's picture: one student, a good and a bad teacher, from real runs.

`make picture` checks and trains the embedded pairs, three seeds each, and draws them into
docs/pictures/pairs.svg; about three minutes of one core. Runs that are there are not run again.
"""

import json
import sys
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import torch

import tutelage
from tutelage.config import CheckConfig, Config, ModelConfig
from tutelage.demonstration import STEPS, demo_config
from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.runs.directory import read_lines

PICTURE = Path(__file__).parents[1] / "pictures/pairs.svg"
SEEDS = (0, 1, 2)
PAIRS = {"compatible": "#1f77b4", "incompatible": "#d62728"}


def settings(folder: Path, teacher: str, seed: int) -> Config:
    """The demonstration's run, with one of the teachers."""
    config = demo_config(folder, seed)
    return config.model_copy(
        update={
            "teacher": ModelConfig(path=str(model_path(teacher))),
            "align": config.align.model_copy(update={"teachers": {}}),
            "check": CheckConfig(budget=40_000),
            "run": config.run.model_copy(update={"dir": str(folder / "run")}),
        }
    )


def measure(folder: Path, teacher: str, seed: int) -> tuple[str, list[dict[str, float]]]:
    """The verdict before training, and the evaluations of the run."""
    if not (folder / "verdict.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        task = EMBEDDED_SPEC.task
        write_prompts(folder / "prompts.jsonl", task.train_prompts(STEPS * 64, seed))
        write_prompts(folder / "held_out.jsonl", task.eval_prompts(1000))
        config = settings(folder, teacher, seed)
        word = tutelage.check(config).verdict.word
        tutelage.train(config, overwrite=True)
        (folder / "verdict.json").write_text(json.dumps(word))
    records = [r for r in read_lines(folder / "run/metrics.jsonl") if r["kind"] == "eval"]
    return json.loads((folder / "verdict.json").read_text()), records


def draw(found: dict[str, list[tuple[str, list[dict[str, float]]]]]) -> None:
    """Accuracy and shared mass over steps: a thin line a seed, a thick one for their mean."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "tutelage", "font.size": 10})
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.1), layout="constrained")
    curves = {"accuracy": "accuracy on held-out problems", "overlap/mass_student": "shared mass"}
    for axes, (key, label) in zip(panels, curves.items(), strict=True):
        for teacher, runs in found.items():
            steps = [record["step"] for record in runs[0][1]]
            values = [[record[key] for record in records] for _, records in runs]
            for line in values:
                axes.plot(steps, line, color=PAIRS[teacher], alpha=0.35, linewidth=1)
            mean = [fmean(column) for column in zip(*values, strict=True)]
            verdict = "/".join(sorted({word for word, _ in runs}))
            name = f"{teacher} teacher; check said: {verdict}"
            axes.plot(steps, mean, color=PAIRS[teacher], linewidth=2.5, label=name)
        axes.set(xlabel="steps of 64 rollouts", ylabel=label, ylim=(0, 1.02))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, frameon=False, loc="outside upper center", ncols=2)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})


def main(folder: Path = Path("runs/picture")) -> None:
    """Run what is not there, and draw."""
    torch.set_num_threads(1)
    draw({t: [measure(folder / f"{t}-{s}", t, s) for s in SEEDS] for t in PAIRS})
    print(PICTURE)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
