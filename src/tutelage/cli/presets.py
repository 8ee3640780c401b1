"""tutelage presets"""

from collections.abc import Sequence
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(presets, words)


def presets(name: Annotated[str | None, tyro.conf.Positional] = None) -> None:
    """Print a preset as YAML, or the names of all with their first lines.

    `preset: NAME` in a config, or `--preset NAME`, starts from these settings; what the config
    says goes on top.

    Args:
        name: which preset.
    """
    from tutelage.config import presets as run_presets

    print(run_presets(name), end="")
