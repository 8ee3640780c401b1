"""tutelage rescue prompts"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put

Select = Literal[
    "overlap", "kl", "teacher_pass_rate", "student_pass_rate", "learnability", "rescue"
]


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the recipe."""
    parse_with_settings(rescue_prompts, words)


def rescue_prompts(
    prompts: Annotated[str, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    against: tuple[str, ...] = (),
    evaluation: tuple[str, ...] = (),
    keep_leaks: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    keep_copies: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    near: Literal["minhash", "semantic", "none"] = "minhash",
    encoder: str | None = None,
    threshold: float | None = None,
    written_in: str | None = None,
    template: str | None = None,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    compare: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    select: Select | None = None,
    quantiles: tuple[float, float] = (0.0, 1.0),
    samples: int = 4,
    mix: str | None = None,
    mix_share: float = 0.2,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Clean, align, select and mix the prompts that a student is distilled on.

    Learns the instruction templates of every file and looks at the questions inside them.
    Drops what repeats an evaluation set, other prompts or an earlier row, and lists it with
    kind and similarity. Writes the questions in the teacher's template, and keeps those on
    which the pair does well. The output is a prompts file that `train` takes, in the order
    of the input.

    Args:
        prompts: the prompts, in the forms of data.prompts.
        output: .jsonl or .parquet file; OUTPUT.report.jsonl lists what repeats what.
        against: prompts that must not be repeated.
        evaluation: evaluation sets; their questions are leaks.
        keep_leaks: list leaks and keep them, as the paper's training set does.
        keep_copies: list copies of earlier rows and keep them.
        near: how similar questions are found besides equal and contained ones; semantic is the
            paper's way and needs an encoder on this machine.
        encoder: folder or name of an encoder for semantic; all-mpnet-base-v2 by default.
        threshold: least similarity; 0.7 of minhash, 0.6 of semantic.
        written_in: the template that the prompts are in, with {question}, where learning takes a
            part of the questions for it.
        template: the user's turn to write, as in
            '{question} Please reason step by step, and put your final answer within \\boxed{}.'
        config: YAML file of a run, whose pair scores and compares; its settings may be changed by
            further flags as in `train`.
        compare: measure the pair on the same questions before and after the template.
        select: score to keep prompts by; scored on samples of both sides.
        quantiles: of prompts from easy or aligned, 0, to hard, 1, which to keep.
        samples: completions of each prompt from either side.
        mix: prompts from elsewhere to strew among them.
        mix_share: their share of the output.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import load_config, section
        from tutelage.config.rescue import PromptsRescue
        from tutelage.errors import UsageError

        if rest and config is None:
            raise UsageError(
                f"{rest[0]} is no flag of rescue prompts; settings of a run follow -c run.yaml"
            )
        tree: dict[str, Any] = {
            "prompts": prompts,
            "against": against,
            "evaluation": evaluation,
            "keep_leaks": keep_leaks,
            "keep_copies": keep_copies,
            "near": None,
            "written_in": written_in,
            "template": template,
            "samples": samples,
            "select": None,
            "mix": None,
        }
        if near != "none":
            given = {"threshold": threshold, "encoder": encoder}
            chosen = {key: value for key, value in given.items() if value is not None}
            tree["near"] = {"type": near, **chosen}
        if select is not None:
            tree["select"] = {"by": select, "low": quantiles[0], "high": quantiles[1]}
        if mix is not None:
            tree["mix"] = {"prompts": mix, "share": mix_share}
        settings = section(PromptsRescue, tree, "rescue prompts")
        run_config = None if config is None else load_config(config, rest)

        from tutelage.cli.progress import say
        from tutelage.rescue.prompts import rescue_prompts as run_rescue
        from tutelage.rescue.prompts_summary import prompts_summary

        def tell(record: dict[str, Any]) -> None:
            if record["kind"] == "scored":
                say(f"{record['done']} of {record['of']} prompts scored.")

        found = run_rescue(settings, output, config=run_config, compare=compare, observer=tell)
        if as_json:
            print_json(found.to_dict())
        else:
            put(prompts_summary(found))

    return call
