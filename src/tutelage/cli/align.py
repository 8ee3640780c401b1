"""tutelage align"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse_with_settings(align, words, tell_settings=True)


def align(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("runs/align"),
    budget: int | None = None,
    questions: int | None = None,
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Say where each teacher pushes the student towards success, without training.

    Rolls the student out from chosen tokens of its own answers, and compares what
    raises success there with what distillation from each teacher would do. Takes the
    file that `train` takes.

    Args:
        config: YAML file with the settings.
        output: directory for the counts and the results.
        budget: most decoded tokens; short for --align.budget.
        questions: how many; short for --align.questions.
        resume: continue in output after a stop; no finished rollout is lost or counted twice.
        overwrite: replace what is in output.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config

        short = {"--align.budget": budget, "--align.questions": questions}
        given = [str(w) for key, value in short.items() if value is not None for w in (key, value)]
        settings = load_config(config, [*rest, *given])

        from tutelage.alignment.job import align as run_align
        from tutelage.cli.progress import say

        def tell(record: dict[str, Any]) -> None:
            if record["kind"] == "plan":
                work = record["work"]
                say(
                    f"{record['questions']} questions, {record['spines']} spines, "
                    f"{record['nodes']} nodes, {record['children']} children: "
                    f"{record['targeted_rollouts']:,} targeted rollouts, about "
                    f"{record['expected_tokens']:,} tokens ({record['natural_tokens']:,} spent on "
                    f"{record['natural_rollouts']} natural rollouts). Teachers read "
                    f"{sum(record['teacher_tokens'].values()):,} tokens apart from it. Work at "
                    f"{work['decode_cost']:.0f} prefilled tokens a decoded one: {work['ours']:,}; "
                    f"one rollout at a time it would be {work['one_at_a_time']:,}."
                )
            elif record["kind"] == "note":
                say(f"{record['text']}.")
            elif "advantage" in record:
                low, high = record.get("advantage_interval", (float("nan"),) * 2)
                say(
                    f"{record['done']} of {record['of']} branches, {record['questions']} "
                    f"questions: advantage {record['advantage']:.4f} [{low:.4f}, {high:.4f}]."
                )
            else:
                say(f"{record['done']} of {record['of']} branches.")

        found = run_align(settings, output, resume=resume, overwrite=overwrite, observer=tell)
        if as_json:
            print_json(found.to_dict())
        else:
            from tutelage.alignment.summary import summary

            put(summary(found))
            put(
                f"\nEvery token: {output / 'tokens.jsonl'}; all numbers: "
                f"{output / 'alignment.json'}"
            )

    return call
