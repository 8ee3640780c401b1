"""tutelage export: one function an engine"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put
from tutelage.errors import UsageError, did_you_mean

ENGINES = {"verl": "data, Hydra overrides and a loss plugin for verl 0.9.1, on many GPUs"}
"""The engines that a run is written for, each with what is written."""


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the function of the engine."""
    if not words or words[0] in ("-h", "--help"):
        print(
            "usage: tutelage export ENGINE [options]        tutelage export ENGINE --help\n\n"
            + "\n".join(f"  {name:12} {what}" for name, what in ENGINES.items())
        )
    elif words[0] not in ENGINES:
        raise UsageError(f"there is no export for {words[0]!r}. {did_you_mean(words[0], ENGINES)}")
    else:
        parse_with_settings(export_verl, words[1:], tell_settings=True)


def export_verl(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("verl"),
    gpus: int = 1,
    teacher_gpus: int = 1,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Write the run for verl 0.9.1: parquet, Hydra overrides, the loss for its registry, a script.

    What verl cannot do of the settings is refused, and what it does otherwise is told.

    Args:
        config: YAML file with the settings, as `train` takes it.
        output: folder to write.
        gpus: GPUs of the student.
        teacher_gpus: GPUs of the teacher, a replica each.
        overwrite: write into a folder that is not empty.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config
        from tutelage.exporting.verl import export_verl as run_export

        written = run_export(
            load_config(config, rest),
            output,
            gpus=gpus,
            teacher_gpus=teacher_gpus,
            overwrite=overwrite,
        )
        if as_json:
            print_json(written.to_dict())
        else:
            put(written)

    return call
