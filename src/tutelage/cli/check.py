"""tutelage check"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put

NOT_GO = 3


def run(words: Sequence[str]) -> int:
    """Read the arguments and call the verb; 3 where the verdict is not go."""
    return parse_with_settings(check, words, tell_settings=True)


def check(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    baseline: str | None = None,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], int]:
    """Say before training whether this pair will work, with reasons.

    Compares what both models say of themselves, then measures the teacher on the
    student's own answers: accuracy of both, agreement, continuations from the student's
    prefixes, and a small gradient alignment. Takes the file that `train` takes. Ends
    with 0 for go and with 3 for every other verdict.

    Args:
        config: YAML file with the settings.
        baseline: the teacher before its post-training, or a sibling (--check.baseline.path).
        output: file for everything that was measured, as JSON.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> int:
        from tutelage.config import load_config

        short = [] if baseline is None else ["--check.baseline.path", baseline]
        rest = [*rest, *short]
        settings = load_config(config, rest)

        from tutelage.cli.progress import look_line, say
        from tutelage.diagnose.checking import check as run_check
        from tutelage.diagnose.summary import summary

        def tell(record: dict[str, Any]) -> None:
            if record["kind"] == "student":
                say(f"{record['prompt_set']}: the student has answered.")
            elif record["kind"] == "stage":
                say(f"{record['prompt_set']}: {record['doing']}.")
            elif record["kind"] == "progress":
                say(f"{record['done']:,} of {record['of']:,} branches are rolled out.")
            elif record["kind"] == "note":
                say(f"{record['text']}.")
            elif record["kind"] == "look":
                say(look_line(record))

        arguments = [*([] if config is None else ["-c", str(config)]), *rest]
        found = run_check(settings, output=output, observer=tell, arguments=arguments)
        if as_json:
            print_json(found.to_dict(arguments))
        else:
            put(summary(found, arguments))
            if output is not None:
                put(f"\nAll numbers: {output}")
        return 0 if found.verdict.word == "go" else NOT_GO

    return call
