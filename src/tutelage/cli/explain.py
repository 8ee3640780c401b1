"""tutelage explain"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse(explain, words)


def explain(
    run: Annotated[Path, tyro.conf.Positional],
    *,
    replay: int | None = None,
    cause: str | None = None,
    top: int = 3,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Say why a run did what it did: causes, likeliest first, with evidence and a setting.

    Reads a run directory of ours, TRL's trainer_state.json or verl's metrics file, and no weights.

    Args:
        run: the run directory, or another library's log.
        replay: steps to run again from the nearest checkpoint, with and without the first change
            proposed, in a directory of its own.
        cause: whose change to replay; by default that of the first cause that proposes one.
        top: how many causes to print.
        as_json: print one JSON object on stdout, with every cause.
    """
    from tutelage.diagnose.explaining import explain as run_explain
    from tutelage.errors import UsageError

    if top < 1:
        raise UsageError(f"--top {top} prints nothing; give 1 or more")
    if cause is not None and replay is None:
        raise UsageError("--cause names what to replay, so it needs --replay K")
    found = run_explain(run)
    told = found.to_dict()
    again = None
    if replay is not None:
        from tutelage.cli.progress import say
        from tutelage.replaying import replay as run_replay

        again = run_replay(found, replay, cause=cause, observer=say)
        told["replay"] = again.to_dict()
    if as_json:
        print_json(told)
        return
    from tutelage.diagnose.told import as_text

    put(as_text(found, top))
    if again is not None:
        put(f"\n{again.summary()}")
