"""tutelage rescue controls"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the recipe."""
    parse_with_settings(controls, words, tell_settings=True)


def controls(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/controls"),
    seeds: int = 5,
    arms: str = "",
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Say what a gain came from: run it beside controls of the same compute, several seeds each.

    The controls that apply are imitation of the teacher's answers (sft), a teacher that
    reads another question (shuffled_teacher), one that is shown another question's context
    (wrong_context), and a fixed negative advantage (fixed_advantage). Takes the file that
    `train` takes.

    Args:
        config: YAML file with the settings.
        output: directory for the runs and the comparison.
        seeds: how many, from run.seed on.
        arms: names of controls, with commas between; empty takes all that apply.
        resume: continue in output after a stop.
        overwrite: replace what is in output.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config

        settings = load_config(config, rest)

        from tutelage.cli.progress import Display
        from tutelage.rescue.controls import controls as run_controls
        from tutelage.rescue.controls_summary import summary

        with Display(0) as display:
            found = run_controls(
                settings,
                output,
                seeds=seeds,
                arms=[name.strip() for name in arms.split(",")] if arms else None,
                resume=resume,
                overwrite=overwrite,
                observer=display,
            )
        if as_json:
            print_json(found.to_dict())
        else:
            put(summary(found))
            put(f"\nruns and numbers: {output}; a page of them: tutelage report {output}")

    return call
