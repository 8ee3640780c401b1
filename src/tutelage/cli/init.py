"""tutelage init"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(init, words)


def init(
    student: Annotated[str, tyro.conf.Positional],
    teacher: Annotated[str, tyro.conf.Positional],
    *,
    data: str | None = None,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("run.yaml"),
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Write a small config for two models, with what their folders and the prompts say.

    Args:
        student: directory of the model that learns, or owner/name on a hub.
        teacher: directory of the model that scores, or owner/name on a hub.
        data: your prompts: a .jsonl, .json, .csv or .parquet file, hub:OWNER/NAME@COMMIT or
            reasoning_gym:NAME.
        output: the config to write.
        overwrite: replace it where it exists.
        as_json: print one JSON object on stdout.
    """
    from tutelage.starting import init as run_init

    begun = run_init(student, teacher, data=data, output=output, overwrite=overwrite)
    if as_json:
        print_json(begun.to_dict())
    else:
        put(begun)
