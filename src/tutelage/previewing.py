"""What both sides will read, before anything is loaded but tokenizers."""

import hashlib
import sys
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.config import Config, ModelConfig
from tutelage.data.prompts import Layout, read_prompts
from tutelage.data.render import chat_template
from tutelage.errors import UsageError
from tutelage.models.compatibility import require_same_tokens
from tutelage.models.facts import facts_of
from tutelage.models.loading import load_tokenizer, stop_ids_of_folder
from tutelage.views import render_both_sides


@dataclass(frozen=True, kw_only=True)
class Side:
    """How one model reads prompts and ends completions."""

    path: str
    """Its folder."""
    chat_template: str | None
    """`own`, or where its template comes from; None where it has none."""
    chat_template_sha256: str | None
    """Of the template's text, in hexadecimal: equal templates have equal ones."""
    end_of_sequence: dict[int, str]
    """The tokenizer's EOS id and its token."""
    stop_ids: dict[int, str]
    """Every id that ends a completion, and its token."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One prompt as one side reads it."""

    ids: tuple[int, ...]
    """Exact token ids."""
    tokens: tuple[str, ...]
    """Each of them as text."""
    text: str
    """All of them as text, special tokens shown."""


@dataclass(frozen=True, kw_only=True)
class PreviewedRow:
    """One row of the prompts."""

    id: str
    """Its id."""
    answer: str | None
    """Its reference answer."""
    source: str | None
    """The data set it names."""
    too_long: bool
    """Whether it exceeds data.max_prompt_tokens, so that a run drops it."""
    beyond_context: bool
    """Whether a side cannot read it with rollout.max_new_tokens more, so that a run refuses it."""
    student: Reading
    """What the student reads."""
    teacher: Reading | None
    """What the teacher reads; None: the student's ids."""


@dataclass(frozen=True, kw_only=True)
class Preview:
    """The first rows of a run's prompts, rendered."""

    prompts: str
    """The source."""
    layout: Layout
    """How its rows were read."""
    student: Side
    """The model that learns."""
    teacher: Side
    """The model that scores."""
    rows: tuple[PreviewedRow, ...]
    """The rows, in the order of the source."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """For a reader; control characters are escaped, line breaks kept."""
        lines = [f"{self.prompts}: {self.layout}"]
        for role, side in (("student", self.student), ("teacher", self.teacher)):
            lines += [f"{role}  {side.path}", *_side_lines(side)]
        for row in self.rows:
            about = [f"answer {row.answer!r}"] if row.answer is not None else []
            about += [f"source {row.source!r}"] if row.source is not None else []
            if row.too_long:
                about.append("longer than data.max_prompt_tokens: dropped")
            elif row.beyond_context:
                about.append("with rollout.max_new_tokens longer than a side can read: refused")
            lines += ["", "  ".join([f"row {row.id!r}", *about])]
            lines += _reading_lines("student", row.student)
            if row.teacher is None:
                lines.append("teacher reads the same ids")
            else:
                lines += _reading_lines("teacher", row.teacher)
        return "\n".join(lines)


def preview(config: Config, rows: int = 3) -> Preview:
    """The verb `preview`: what student and teacher read of the first rows; loads no weights.

    Raises:
        UsageError: fewer than one row asked for, or tokenizers that cannot be combined.
        DataError: prompts that cannot be read or rendered.
    """
    if rows < 1:
        raise UsageError(f"preview shows at least one row, not {rows}")
    loaded = read_prompts(config.data.prompts)
    student = load_tokenizer(config.student, "student")
    teacher = load_tokenizer(config.teacher_model, "teacher")
    require_same_tokens(student, teacher)
    contexts = (
        facts_of(config.student, "student", student).context,
        facts_of(config.teacher_model, "teacher", teacher).context,
    )
    data = config.data.model_copy(update={"max_prompt_tokens": sys.maxsize})
    everything = config.model_copy(update={"data": data})
    rendered, _ = render_both_sides(everything, loaded.prompts[:rows], student, teacher)
    return Preview(
        prompts=config.data.prompts,
        layout=loaded.layout,
        student=_side(config.student, "student", student),
        teacher=_side(config.teacher_model, "teacher", teacher),
        rows=tuple(
            PreviewedRow(
                id=p.prompt.id,
                answer=p.prompt.answer,
                source=p.prompt.source,
                too_long=len(p.ids) > config.data.max_prompt_tokens,
                beyond_context=any(
                    context is not None and len(read) + config.rollout.max_new_tokens > context
                    for context, read in zip(contexts, (p.ids, p.for_teacher().ids), strict=True)
                ),
                student=_reading(p.ids, student),
                teacher=None if p.teacher_ids is None else _reading(p.teacher_ids, teacher),
            )
            for p in rendered
        ),
    )


def _side(settings: ModelConfig, role: str, tokenizer: PreTrainedTokenizerBase) -> Side:
    template = chat_template(tokenizer, settings.chat_template, role)
    eos = tokenizer.eos_token_id
    return Side(
        path=settings.path,
        chat_template=None if template is None else settings.chat_template or "own",
        chat_template_sha256=None
        if template is None
        else hashlib.sha256(template.encode()).hexdigest(),
        end_of_sequence=_named([] if eos is None else [eos], tokenizer),
        stop_ids=_named(sorted(stop_ids_of_folder(settings, role, tokenizer)), tokenizer),
    )


def _reading(ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> Reading:
    return Reading(
        ids=ids, tokens=tuple(_text([i], tokenizer) for i in ids), text=_text(ids, tokenizer)
    )


def _named(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {i: _text([i], tokenizer) for i in ids}


def _text(ids: list[int] | tuple[int, ...], tokenizer: PreTrainedTokenizerBase) -> str:
    text = tokenizer.decode(
        list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    assert isinstance(text, str)
    return text


def _side_lines(side: Side) -> list[str]:
    template = (
        f"{side.chat_template}, sha256 {side.chat_template_sha256[:16]}"
        if side.chat_template_sha256 is not None
        else "none: prompts are tokenised as they stand"
    )
    return [
        f"  chat template  {template}",
        f"  EOS            {_told(side.end_of_sequence)}",
        f"  stops at       {_told(side.stop_ids)}",
    ]


def _told(ids: dict[int, str]) -> str:
    return ", ".join(f"{i} {token!r}" for i, token in ids.items()) or "nothing"


def _reading_lines(role: str, reading: Reading) -> list[str]:
    shown = "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in reading.text)
    return [
        f"{role} reads {len(reading.ids)} tokens",
        *(f"  | {line}" for line in shown.split("\n")),
        f"  ids {' '.join(map(str, reading.ids))}",
    ]
