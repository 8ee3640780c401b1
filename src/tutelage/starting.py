"""A first config for a user's own pair: models and prompts decide what it sets."""

import importlib.util
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from tutelage.config import DataConfig, Numeric, StudentConfig, load_config
from tutelage.data.prompts import LoadedPrompts, read_prompts, split_held_out
from tutelage.data.render import render_all
from tutelage.data.sources import REASONING_GYM
from tutelage.data.verify import choose_verifier
from tutelage.errors import DataError, UsageError
from tutelage.models.anatomy import quiet_transformers
from tutelage.models.checkpoints import ModelFolder, open_folder
from tutelage.models.facts import Facts, disagreements, facts_of
from tutelage.models.loading import load_tokenizer
from tutelage.paths import usable_path
from tutelage.types import Prompt

PRESET = "recommended"
_LENGTHS_OF = 4000  # prompts whose length is looked at, spread over the file
_NO_DATA = "prompts.jsonl"
_COLUMN = 32  # where comments begin
_NARROW, _WIDE = 64, 576  # widths between which learning rates were compared (docs/log.md)
_LR_NARROW, _LR_POWER = 1e-3, 1.5  # a third of the best at the narrow one, and how it falls


@dataclass(frozen=True, kw_only=True)
class FirstConfig:
    """A config that was written."""

    config: str
    """Its file."""
    notes: tuple[str, ...]
    """What its reader should know."""
    next: str
    """The command to go on with."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """For a reader."""
        return "\n".join([self.config, *(f"note: {n}" for n in self.notes), f"next: {self.next}"])


def init(
    student: str | Path,
    teacher: str | Path,
    *,
    data: str | Path | None = None,
    output: str | Path = "run.yaml",
    overwrite: bool = False,
) -> FirstConfig:
    """The verb `init`: a small config for two models, which the other verbs take as it is.

    Models are read without their weights, and prompts as a run would read them.

    Args:
        student: directory of the model that learns, or owner/name on a hub.
        teacher: the model that scores, likewise.
        data: a source of prompts, in the forms of `data.prompts`; without one the config names
            prompts.jsonl.
        output: the file to write.
        overwrite: replace it where it exists.

    Raises:
        UsageError: a model that cannot be used, a pair that cannot be combined, or a file that
            exists.
        DataError: prompts that cannot be read.
    """
    path = _free(output, overwrite)
    sides = _Pair.read(str(student), str(teacher))
    text, notes = _written(sides, None if data is None else str(data), path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    load_config(path)
    return FirstConfig(
        config=str(path), notes=tuple(notes), next=f"tutelage check -c {shlex.quote(str(path))}"
    )


def _free(output: str | Path, overwrite: bool) -> Path:
    path = usable_path(output, "config")
    if path.is_dir():
        raise UsageError(f"{path} is a directory; give the file to write, such as {path}/run.yaml")
    if path.exists() and not overwrite:
        raise UsageError(
            f"{path} exists; --overwrite replaces it, and -o NAME.yaml writes another file"
        )
    return path


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Both models as they describe themselves."""

    student: str
    teacher: str
    folders: tuple[ModelFolder, ModelFolder]
    facts: tuple[Facts, Facts]

    @staticmethod
    def read(student: str, teacher: str) -> "_Pair":
        """Both folders, refused where they cannot be combined."""
        roles = (("student", student), ("teacher", teacher))
        folders = [open_folder(path, role) for role, path in roles]
        if folders[0].path.resolve() == folders[1].path.resolve() and not any(
            folder.adapters for folder in folders
        ):
            raise UsageError(
                f"student and teacher are one model, {student}, so there is nothing to learn; give "
                "a more able teacher. For a student that teaches itself from what it is shown, "
                "see `teacher: {type: initial, context: answer}` in docs/rescue.md"
            )
        facts = []
        for role, path in roles:
            settings = StudentConfig(path=path)
            with quiet_transformers():
                facts.append(facts_of(settings, role, load_tokenizer(settings, role)))
        stops = [s for s in disagreements(*facts) if s.severity == "stop"]
        if stops:
            raise UsageError("\n".join(f"{s.evidence}. {s.advice}" for s in stops))
        return _Pair(
            student=student,
            teacher=teacher,
            folders=(folders[0], folders[1]),
            facts=(facts[0], facts[1]),
        )

    @property
    def context(self) -> int | None:
        """Tokens that both read."""
        known = [f.context for f in self.facts if f.context is not None]
        return min(known, default=None)

    @property
    def rows(self) -> int:
        """Ids that both heads have."""
        return min(folder.vocabulary for folder in self.folders)

    def told(self, side: int) -> str:
        """A model in a few words."""
        folder, facts = self.folders[side], self.facts[side]
        parts = [f"{_count(folder.parameters)} parameters"]
        if facts.context is not None:
            parts.append(f"{facts.context:,} tokens of context")
        parts.append("chat template" if facts.template is not None else "no chat template")
        return ", ".join(parts)


def _written(pair: _Pair, data: str | None, path: Path) -> tuple[str, list[str]]:
    """The config's text, and what its reader should know."""
    differences = {s.name: f"{s.evidence}; {s.advice}" for s in disagreements(*pair.facts)}
    loaded = None if data is None else read_prompts(data)
    borrows = (
        loaded is not None
        and any(prompt.messages for prompt in loaded.prompts)
        and pair.facts[0].template is None
        and pair.facts[1].template is not None
        and usable_path(pair.teacher, "teacher").is_dir()
    )
    if borrows:
        differences["templates_differ"] = (
            "the student has no chat template, so it reads and learns the teacher's, and is saved "
            "with it"
        )
    notes = [text for name, text in differences.items() if name != "vocabularies_differ"]
    student = {"path": pair.student, **({"chat_template": pair.teacher} if borrows else {})}
    prompt_tokens, why_prompt, new_tokens = _lengths(pair, loaded, StudentConfig(**student))
    data_lines, more = _data_lines(data, loaded)
    notes += more
    held_out, per_step = _sizes(loaded)
    lr, why_lr = _learning_rate(pair.folders[0].width)
    run = _unused(Path("runs") / path.stem)
    lines = [
        "# A first config, written by tutelage init. Every setting: tutelage train --help",
        *_commands(path, run),
        "",
        _line(f"preset: {PRESET}", "what is minimised, and how fast: tutelage presets recommended"),
        "",
        _line("student:", f"learns: {pair.told(0)}"),
        f"  path: {_yaml(pair.student)}",
    ]
    if borrows:
        lines.append(_line(f"  chat_template: {_yaml(pair.teacher)}", "it has none of its own"))
    lines += [
        _line("teacher:", f"scores what the student writes: {pair.told(1)}"),
        f"  path: {_yaml(pair.teacher)}",
    ]
    if "templates_differ" in differences and not borrows:
        lines.append(_line("  # chat_template: own", "it reads the student's template otherwise"))
    lines += ["", "data:", *data_lines]
    if held_out is not None:
        lines.append(_line(f"  held_out: {held_out}", "set aside, to measure on"))
    lines += [
        _line(f"  max_prompt_tokens: {prompt_tokens}", why_prompt),
        "",
        "rollout:",
        _line(f"  prompts_per_step: {per_step}", "answers of one step of the optimizer"),
        _line(f"  max_new_tokens: {new_tokens}", "of an answer; check says how many are cut off"),
        "",
    ]
    if pair.rows < 128:
        lines += [
            "objective:",
            _line(
                f"  k: {min(pair.rows, max(4, pair.rows // 8))}",
                f"an eighth of the {pair.rows} tokens there are, at least 4",
            ),
            "",
        ]
    if lr is not None:
        lines += ["optimizer:", _line(f"  lr: {lr:g}", why_lr), ""]
    lines += [
        "run:",
        _line(f"  dir: {_yaml(str(run))}", "everything a run writes"),
        _line("  steps: 100", "evaluated every 20; --resume goes on after a stop"),
    ]
    return "\n".join(lines) + "\n", notes


def _commands(path: Path, run: Path) -> list[str]:
    """Where to go on."""
    config = f"-c {shlex.quote(str(path))}"
    told = {
        f"tutelage preview {config}": "the exact tokens both sides read",
        f"tutelage check {config}": "will this pair work? a verdict before training",
        f"tutelage plan {config}": "memory and tokens",
        f"tutelage train {config}": f"then train; tutelage watch {shlex.quote(str(run))}",
    }
    return ["# " + _line(command, what).replace("\n", " ") for command, what in told.items()]


def _data_lines(data: str | None, loaded: LoadedPrompts | None) -> tuple[list[str], list[str]]:
    """The prompts and how answers are judged; and notes on them."""
    if loaded is None or data is None:
        lines = [
            _line(f"  prompts: {_NO_DATA}", "rows of `prompt` (text or chat) and `answer`"),
            _line("  # verifier: numeric", "or math, exact, a pattern: how answers are judged"),
        ]
        note = (
            f"no --data was given, so the config names {_NO_DATA}: put your prompts there, one "
            '{"prompt": "...", "answer": "..."} a line (docs/data.md has other forms)'
        )
        return lines, [note]
    prompts = _line(f"  prompts: {_yaml(data)}", str(loaded.layout))
    verifier, why = _verifier(data, loaded.prompts)
    if verifier is not None:
        return [prompts, _line(f"  verifier: {verifier}", why)], []
    judged_elsewhere = data.startswith(REASONING_GYM)
    notes = [] if judged_elsewhere else [f"answers are not judged: {why}"]
    return [prompts, f"  # verifier: {why}"], notes


def _verifier(data: str, prompts: Sequence[Prompt]) -> tuple[str | None, str]:
    """A verifier that suits the answers, or None, and why."""
    if data.startswith(REASONING_GYM):
        return None, "the generator judges its own problems"
    answers = [p.answer for p in prompts if p.answer is not None]
    if not answers:
        return None, "the rows have no answers, so agreement with the teacher alone is measured"
    if len(answers) < len(prompts):
        return None, f"{len(prompts) - len(answers)} of {len(prompts)} rows have no answer"
    try:
        choose_verifier(DataConfig(prompts=data, verifier=Numeric()), prompts)
    except DataError:
        pass
    else:
        zeros = any(a.startswith("0") and a[1:].isdigit() for a in answers)
        alike = "; 07 and 7 are one" if zeros else ""
        return "numeric", f"all answers are numbers: the last one written counts{alike}"
    formulas = sum(any(c.isdigit() or c == "\\" for c in answer) for answer in answers)
    if 2 * formulas < len(answers):
        return None, f"answers such as {answers[0]!r:.40}; give exact, a pattern or a function"
    if importlib.util.find_spec("math_verify") is None:
        return None, "math suits the answers and needs pip install 'tutelage[verify]'"
    return "math", "answers are compared as mathematics"


def _lengths(
    pair: _Pair, loaded: LoadedPrompts | None, student: StudentConfig
) -> tuple[int, str, int]:
    """Most tokens of a prompt, what is said of that, and most tokens of an answer.

    Both fit the context of both models together.
    """
    context = pair.context
    most = 1024 if context is None else min(1024, max(1, context // 2))
    if loaded is None:
        why = "longer prompts are dropped, and counted"
    else:
        rows = loaded.prompts[:: -(-len(loaded.prompts) // _LENGTHS_OF)]
        with quiet_transformers():
            every = [len(ids) for ids in render_all(rows, pair.facts[0].tokenizer, student)]
        longer = sum(length > most for length in every)
        why = f"the longest has {max(every):,}"
        if longer == len(every):
            raise UsageError(
                f"all prompts are longer than {most:,} tokens, half of the context of these "
                f"models ({context}); the shortest has {min(every):,}. Shorten them, or take "
                "models that read more"
                if most != 1024
                else f"all prompts are longer than {most:,} tokens; the shortest has "
                f"{min(every):,}. Write the config by hand, with data.max_prompt_tokens"
            )
        if longer:
            why += f"; {longer} of {len(every)} are longer than this, and dropped"
        most = min(most, -(-max(every) // 64) * 64)
    return most, why, 512 if context is None else min(512, context - most)


def _learning_rate(width: int) -> tuple[float | None, str]:
    """For a student of this width, None for the preset's, and why.

    A third of the best that was measured, and the preset's beyond the widths of that: too high a
    rate destroys a student, too low a one is seen.
    """
    if not 0 < width <= _WIDE:
        return None, ""
    lr = _LR_NARROW * (_NARROW / max(width, _NARROW)) ** _LR_POWER
    return float(f"{lr:.0e}"), (
        f"for width {width}: a third of the best of those tried at {_NARROW} and at {_WIDE}, which "
        f"width^-{_LR_POWER} joins"
    )


def _sizes(loaded: LoadedPrompts | None) -> tuple[int | None, int]:
    """Held-out prompts, None for the default, and prompts of a step, which the rest must fill."""
    if loaded is None:
        return None, 64
    held_out = min(64, len(loaded.prompts) // 5)
    training, _ = split_held_out(loaded.prompts, held_out)
    return held_out, max(1, min(64, len(training)))


def _unused(folder: Path) -> Path:
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _line(setting: str, comment: str) -> str:
    return f"{setting:{_COLUMN}}  # {' '.join(comment.split())}"


def _yaml(text: str) -> str:
    """Text as a YAML scalar on one line."""
    return yaml.safe_dump(text, width=10**9, allow_unicode=True).removesuffix("...\n").strip()


def _count(number: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
