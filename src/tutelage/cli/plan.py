"""tutelage plan"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse_with_settings(plan, words)


def plan(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Show the resolved settings, memory and tokens of a run without loading weights.

    Args:
        config: YAML file with the settings; --section.key value changes them.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import dump_config, load_config
        from tutelage.planning import plan as run_plan

        settings = load_config(config, rest)
        result = run_plan(settings)
        if as_json:
            print_json({"config": settings.model_dump(mode="json"), **result.to_dict()})
        else:
            put(dump_config(settings))
            put(result.table())

    return call
