"""tutelage doctor"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse_with_settings(doctor, words)


def doctor(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Look at machine, versions and extras; with settings also at memory, disk and servers.

    Args:
        config: YAML file with the settings of a run; --section.key value changes them.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config
        from tutelage.diagnose.machine import doctor as look
        from tutelage.errors import MachineError, ServerError

        diagnosis = look(load_config(config, rest) if config is not None or rest else None)
        if as_json:
            print_json(diagnosis.to_dict())
        else:
            put(diagnosis.table())
        for part, kind in (("environment", MachineError), ("server", ServerError)):
            if faults := diagnosis.faults(part):
                raise kind("; ".join(f"{fault.name}: {fault.found}" for fault in faults))

    return call
