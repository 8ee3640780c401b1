"""A run for verl 0.9: data, a list of Hydra overrides, a loss for its registry, and a script."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tutelage.config import (
    Config,
    Function,
    GrowingHorizon,
    ModelConfig,
    NoBaseline,
    NoControl,
    Sampled,
    TopK,
)
from tutelage.config.base import Section
from tutelage.data.render import worded
from tutelage.errors import UsageError
from tutelage.exporting.verl_overrides import LOSS, REWARD, environment, hydra, overrides
from tutelage.models.facts import own_template
from tutelage.models.loading import load_tokenizer
from tutelage.paths import usable_path
from tutelage.session import split_prompts
from tutelage.types import Message, Prompt

VERSION = "0.9.1"

# Settings that the overrides, the data or the loss carry over, or that are refused, or that only
# other verbs read. All others are told where they are not the default.
_CARRIED = {
    "student": "path device dtype template system_prompt user_prompt lora.rank lora.alpha "
    "lora.target_modules gradient_checkpointing",
    "teacher": "path device dtype",
    "evaluation": "every samples temperature top_p",
    "run": "dir seed steps save_every keep trackers",
}
_CARRIED_WHOLE = {"data", "rollout", "objective", "optimizer", "check", "align", "cold_start"}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A run that was written for verl."""

    folder: str
    """Where."""
    files: tuple[str, ...]
    """What is in it."""
    notes: tuple[str, ...]
    """What is otherwise there than in `tutelage train`."""
    next: str
    """The command that starts it."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """For a reader."""
        files = [f"{self.folder}/{name}" for name in self.files]
        return "\n".join([*files, *(f"note: {n}" for n in self.notes), f"next: {self.next}"])


def export_verl(
    config: Config,
    output: str | Path,
    *,
    gpus: int = 1,
    teacher_gpus: int = 1,
    overwrite: bool = False,
) -> Exported:
    """The verb `export verl`: the same run for verl, on GPUs of one host.

    Args:
        config: the run. What verl cannot do of it is refused; what it does otherwise is a note.
        output: the folder to write.
        gpus: of the student.
        teacher_gpus: of the teacher, a replica each.
        overwrite: replace files in the folder.

    Raises:
        UsageError: settings that verl has nothing for, or a folder with something in it.
        DataError: prompts that cannot be read.
    """
    folder = usable_path(output, "output").absolute()
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise UsageError(f"{output} is not empty; --overwrite writes into it, or give another")
    if faults := list(_refused(config, gpus, teacher_gpus)):
        raise UsageError("verl cannot run this: " + "\n".join(faults))
    training, held_out, _ = split_prompts(config)
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in (("train", training), ("test", held_out or training[:1])):
        _write_rows(folder / f"{name}.parquet", [_row(config, p, name) for p in prompts])
    given = overrides(config, folder, len(training), bool(held_out), gpus, teacher_gpus)
    lines = [f"{key}={hydra(value)}" for key, value in given.items()]
    data = config.data.model_dump(mode="json", include={"prompts", "verifier"})
    if isinstance(config.data.verifier, Function):  # Ray's workers start elsewhere
        file, _, name = config.data.verifier.path.rpartition(":")
        if file.endswith(".py"):
            data["verifier"]["path"] = f"{usable_path(file).absolute()}:{name}"
    objective = config.objective.model_dump(mode="json")
    texts = {
        "overrides.txt": "\n".join(lines) + "\n",
        f"{LOSS}.py": _plugin(f"register({_python(objective)})"),
        f"{REWARD}.py": _plugin(f"compute_score = scorer({_python(data)})"),
        "run.sh": _script(folder),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "run.sh").chmod(0o755)
    return Exported(
        folder=str(output),
        files=("train.parquet", "test.parquet", *texts),
        notes=tuple(_notes(config)),
        next=f"bash {shlex.quote(str(Path(output) / 'run.sh'))}    # where verl {VERSION} and "
        "tutelage are installed",
    )


def rows_for_verl(prompts: Sequence[Prompt], split: str = "train") -> list[dict[str, Any]]:
    """Prompts in verl's columns; `read_prompts` gives the same ones back."""
    return [
        {
            "data_source": prompt.source or "tutelage",
            "prompt": [asdict(turn) for turn in _chat(prompt)],
            "ability": "any",
            "reward_model": {"style": "rule", "ground_truth": prompt.answer},
            "extra_info": {
                "index": prompt.id,
                "split": split,
                "question": prompt.question,
                "metadata": json.dumps(dict(prompt.metadata), ensure_ascii=False, default=str),
            },
        }
        for prompt in prompts
    ]


def _chat(prompt: Prompt) -> Sequence[Message]:
    return prompt.messages or (Message("user", prompt.text),)


def _row(config: Config, prompt: Prompt, split: str) -> dict[str, Any]:
    (row,) = rows_for_verl([prompt], split)
    read = worded(prompt, config.student, "student")
    return {**row, "prompt": [asdict(turn) for turn in _chat(read)]}


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)


def _refused(config: Config, gpus: int, teacher_gpus: int) -> Iterator[str]:
    """What verl has nothing for, each with what to do."""
    student, rollout, objective = config.student, config.rollout, config.objective
    if isinstance(objective, TopK) and objective.support != "teacher":
        yield (
            f"objective.support {objective.support}: its teacher tells its own likely tokens "
            "alone; use --objective.support teacher, or --objective sampled"
        )
    if not isinstance(objective, Sampled | TopK):
        yield (
            "objective.type full: its teacher tells its likely tokens alone; use "
            "--objective '{type: top_k, support: teacher}', or --objective sampled"
        )
    if getattr(objective.divergence, "ramp", None) is not None:
        yield "objective.divergence.ramp needs the teacher's whole distribution; leave it out"
    if isinstance(objective, Sampled) and not isinstance(objective.baseline, NoBaseline):
        yield "objective.baseline: there is none there; leave it out (the expected gradient stays)"
    for name, plain in (
        ("weight", "uniform"),
        ("prompt_weight", "uniform"),
        ("target", "teacher"),
    ):
        if getattr(objective, name).type != plain:
            yield f"objective.{name} {getattr(objective, name).type}: there is none; leave it out"
    for name in ("brake", "reward", "return_to_go"):
        if getattr(objective, name) is not None:
            yield f"objective.{name} is not carried over; leave it out"
    if not isinstance(config.teacher, ModelConfig):
        yield f"teacher.type {config.teacher.type}: its teacher is another model; give a path"
    elif config.teacher.own_prompt:
        yield "teacher: it reads the student's ids there, so leave out prompt settings of its own"
    elif config.teacher.server is not None:
        yield "teacher.server: it starts the teacher itself; leave it out"
    if student.server is not None:
        yield "student.server: it samples by itself; leave it out"
    if student.chat_template not in (None, "own"):
        yield "student.chat_template: save it in the student's folder, which it reads"
    for role, model in (("student", student), ("teacher", config.teacher_model)):
        if model.revision is not None:
            yield f"{role}.revision: it takes the newest; download it, and give the folder"
    tokenizer = load_tokenizer(student, "student")
    if own_template(tokenizer) is None or not config.data.use_chat_template:
        yield (
            "it renders every prompt by the student's chat template, and there is none (or "
            "data.use_chat_template is off); save one with the tokenizer"
        )
    if rollout.temperature != 1.0:
        yield f"rollout.temperature {rollout.temperature:g}: its teacher scores at 1 alone"
    if rollout.student_share != 1.0 or rollout.delay_steps or rollout.steps_per_generation > 1:
        yield (
            "rollout.student_share, delay_steps and steps_per_generation: the student samples, "
            "and for every step anew; leave out"
        )
    if isinstance(rollout.horizon, GrowingHorizon):
        yield "rollout.horizon growing: its answers are whole from the start; leave it out"
    if not isinstance(config.control, NoControl):
        yield f"control {config.control.type}: there is none; leave it out"
    if config.evaluation.max_new_tokens not in (None, rollout.max_new_tokens):
        yield "evaluation.max_new_tokens: both lengths are one there; leave it out"
    rollouts = rollout.prompts_per_step * rollout.group_size
    if gpus < 1 or teacher_gpus < 1 or rollouts % gpus:
        yield (
            f"{rollouts} rollouts of a step are shared by {gpus} GPUs of the student, and the "
            f"teacher has {teacher_gpus}; it needs one each at least, and an equal share"
        )


def _notes(config: Config) -> Iterator[str]:
    """What comes out otherwise there."""
    yield (
        "its teacher and its rollouts are vLLM's, in bfloat16 as are the student's layers; "
        "samples are drawn otherwise than here"
    )
    if config.optimizer.warmup_steps:
        yield "its first step of the warm-up has the learning rate 0, so every step is one later"
    if config.evaluation.every and not config.is_judged:
        yield "there is no data.verifier, so its evaluations score 0"
    if config.is_judged:
        yield "answers that cannot be judged score 0 there, and are unknown here"
    yield (
        "it checks no pair and guards nothing; `tutelage check` first, and `tutelage explain "
        "metrics.jsonl` afterwards reads what it logs"
    )
    left = sorted(_left(config))
    if left:
        yield f"not carried over: {', '.join(left)}"


def _left(config: Config) -> Iterator[str]:
    """Settings that are not the default and that nothing here stands for."""
    carried = {f"{part}.{name}" for part, names in _CARRIED.items() for name in names.split()}

    def walk(section: Section, prefix: str) -> Iterator[str]:
        for name in type(section).model_fields:
            value, place = getattr(section, name), f"{prefix}{name}"
            if place in carried or place in _CARRIED_WHOLE:
                continue
            default = type(section).model_fields[name].get_default(call_default_factory=True)
            partly = type(value) is type(default) or any(c.startswith(f"{place}.") for c in carried)
            if isinstance(value, Section) and partly:
                yield from walk(value, f"{place}.")
            elif value != default:
                yield place

    return walk(config, "")


def _python(value: Any) -> str:
    """A plain value as Python text."""
    return repr(json.loads(json.dumps(value)))


def _plugin(line: str) -> str:
    name = line.split("(")[0].split()[-1]
    return (
        '"""Written by tutelage export verl."""\n\n'
        f"from tutelage.exporting.verl_loss import {name}\n\n{line}\n"
    )


def _script(folder: Path) -> str:
    exports = [
        f"export {name}={shlex.quote(value)}"
        + ("${PYTHONPATH:+:$PYTHONPATH}" if name == "PYTHONPATH" else "")
        for name, value in environment(folder).items()
    ]
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# Written by tutelage export verl, for verl {VERSION}. More overrides may follow: "
            "run.sh trainer.total_epochs=2",
            "set -euo pipefail",
            *exports,
            f"mapfile -t overrides < {shlex.quote(str(folder / 'overrides.txt'))}",
            'exec python -m verl.trainer.main_ppo "${overrides[@]}" "$@"',
            "",
        ]
    )
