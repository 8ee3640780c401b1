"""tutelage preview"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse_with_settings(preview, words)


def preview(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    rows: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 3,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Show the exact tokens that student and teacher read of the first prompts.

    With the layout of the prompts file, the chat templates and the ids that end a completion.

    Args:
        config: YAML file with the settings; --section.key value changes them.
        rows: prompts to show.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config
        from tutelage.previewing import preview as run_preview

        result = run_preview(load_config(config, rest), rows)
        if as_json:
            print_json(result.to_dict())
        else:
            put(result)

    return call
