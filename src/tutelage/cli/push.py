"""tutelage push"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse, show


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(push, words)


def push(
    run: Annotated[Path, tyro.conf.Positional],
    repository: Annotated[str, tyro.conf.Positional],
    *,
    public: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Upload a run's finished student, with its model card, to a hub; log in with `hf auth login`.

    Args:
        run: the run directory.
        repository: owner/name; made where it does not exist.
        public: let everybody see a repository that is made; otherwise it is private.
        as_json: print one JSON object on stdout.
    """
    from tutelage.publishing import push as run_push

    show({"url": run_push(run, repository, public=public)}, as_json)
