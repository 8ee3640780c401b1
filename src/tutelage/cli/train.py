"""tutelage train"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from tutelage.cli.arguments import parse_with_settings, show


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse_with_settings(train, words, tell_settings=True)


def train(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    allow_change: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    max_hours: float | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Distil a teacher into a student on the student's own samples.

    Args:
        config: YAML file with the settings.
        resume: continue the run in run.dir from its newest valid checkpoint; begin where none is.
        overwrite: replace the run in run.dir.
        allow_change: a setting that may differ from the resumed run's, by name; can be repeated.
        max_hours: save and end this sitting after that long; short for --run.max_hours.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config

        limit = [] if max_hours is None else ["--run.max_hours", str(max_hours)]
        settings = load_config(config, [*rest, *limit])

        from tutelage.cli.progress import Display
        from tutelage.paths import usable_path
        from tutelage.ranks.joining import is_first
        from tutelage.training import train as run_train

        folder = usable_path(settings.run.dir, "run.dir")
        if not is_first():  # of several processes one speaks
            run_train(settings, resume=resume, overwrite=overwrite, allow_change=allow_change)
            return
        with Display(
            settings.run.steps,
            name=str(folder),
            evaluate_every=settings.evaluation.every,
            before=folder if resume else None,
        ) as display:
            result = run_train(
                settings,
                resume=resume,
                overwrite=overwrite,
                allow_change=allow_change,
                observer=display,
            )
        summary: dict[str, Any] = {
            "outcome": result.outcome,
            "step": result.step,
            "run_dir": str(result.run),
            "checkpoint": str(result.checkpoint),
            "student": str(result.student),
            "best_step": result.best_step,
        }
        for name, record in (("before", result.first), ("after", result.last)):
            for key, label in (("accuracy", "accuracy"), ("kl/reverse", "reverse_kl")):
                if key in record:
                    summary[f"{label}_{name}"] = record[key]
        show(summary, as_json)

    return call
