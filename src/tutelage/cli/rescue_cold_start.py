"""tutelage rescue cold-start"""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put
from tutelage.errors import UsageError

_THEN = "--then"


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the recipe; what follows `--then` is another command."""
    own, follow_up = list(words), None
    if _THEN in own:
        place = own.index(_THEN)
        own, follow_up = own[:place], own[place + 1 :]
        if follow_up[:1] != ["train"]:
            raise UsageError(
                f"--then {' '.join(follow_up[:1])} cannot follow a cold start; write --then train, "
                "with -c and settings of its own where they differ"
            )
    call = parse_with_settings(cold_start, own, tell_settings=True)
    call(None if follow_up is None else follow_up[1:])


def cold_start(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/cold-start"),
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], Callable[[list[str] | None], None]]:
    """Let the student imitate the teacher's answers first, then say whether the pair works.

    Draws answers from the teacher, rejects what is cut, repeats itself or holds no final
    answer, trains the student on the rest, and runs `check` before and after. Takes the
    file that `train` takes. `--then train [-c run.yaml] [settings]` at the end goes on
    with distillation from that student, with the same teacher.

    Args:
        config: YAML file with the settings.
        output: directory for the answers, the checkpoints and the student.
        resume: continue in output after a stop; no answer is drawn twice.
        overwrite: replace what is in output.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> Callable[[list[str] | None], None]:
        from tutelage.config import load_config

        settings = load_config(config, rest)

        def start(follow_up: list[str] | None) -> None:
            then = None
            if follow_up is not None:
                words = follow_up if "-c" in follow_up else [*_given(config), *rest, *follow_up]
                then = _settings_of(words)

            from tutelage.cli.progress import Display
            from tutelage.rescue.cold_start import cold_start as run_cold_start
            from tutelage.rescue.cold_start_summary import summary

            with Display(0 if then is None else then.run.steps) as display:
                found = run_cold_start(
                    settings,
                    output,
                    then=then,
                    resume=resume,
                    overwrite=overwrite,
                    observer=display,
                )
            if as_json:
                print_json(found.to_dict())
            else:
                put(summary(found, shlex.join([*_given(config), *rest])))

        return start

    return call


def _given(config: Path | None) -> list[str]:
    return [] if config is None else ["-c", str(config)]


def _settings_of(words: list[str]) -> Any:
    """The settings that `-c FILE --section.key value` words name."""
    from tutelage.config import load_config

    path = None
    if "-c" in words:
        place = words.index("-c")
        if place + 1 == len(words):
            raise UsageError("-c lacks a file; write -c run.yaml")
        path, words = Path(words[place + 1]), words[:place] + words[place + 2 :]
    return load_config(path, words)
