"""The verb `rescue prompts`: prompts that suit a teacher, without leaks and copies."""

import json
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tutelage.config import Config, PromptFormat, PromptSet
from tutelage.config.rescue import Mixture, PromptsRescue
from tutelage.data.render import worded
from tutelage.diagnose.checking import check
from tutelage.errors import DataError, UsageError
from tutelage.rescue.scoring import difficulties, mean_scores, score_prompts, select
from tutelage.rescue.sieve import PARTS, Kept, Sieve
from tutelage.runs.directory import full_disk_told, output_file, replace_text, to_json
from tutelage.types import Message, Prompt

Observer = Callable[[dict[str, Any]], None]
Row = dict[str, Any]
_ROWS = 1024
_COMPARED = (
    "overlap/ratio",
    "overlap/mass_student",
    "kl/reverse",
    "entropy/gap",
    "rollout/truncated",
)


@dataclass(frozen=True, kw_only=True)
class RescuedPrompts:
    """What came of a file of prompts."""

    output: Path
    """The prompts, in a form that `train` takes."""
    report: Path
    """A JSON line for each row that repeats a known question: which, how, and how similar."""
    summary: Mapping[str, Any]
    """Counts, learned templates, scores and the comparison of templates."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"output": str(self.output), "report": str(self.report), **self.summary}


@dataclass(frozen=True, slots=True)
class _Ready:
    """A row as it will be written."""

    kept: Kept
    prompt: Prompt
    row: Row


def rescue_prompts(
    settings: PromptsRescue,
    output: str | Path,
    *,
    config: Config | None = None,
    compare: bool = False,
    observer: Observer = lambda record: None,
) -> RescuedPrompts:
    """Clean, align, select and mix prompts.

    Without `select` and `mix` rows stream from file to file, and memory holds what is known
    of each question; with them the rows that were kept are held too. `config` names the pair:
    needed for `settings.select`, and for `compare`, which measures the pair on the same
    questions before and after `settings.template`.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.
    """
    started = time.monotonic()
    path = output_file(output, ".jsonl", ".parquet")
    if path.exists() and any(
        Path(source).exists() and path.samefile(source)
        for source in (settings.prompts, *settings.evaluation, *settings.against)
    ):
        raise UsageError(
            f"{path} is read as well; name another output, which leaves what is read as it is"
        )
    _require(settings, config, compare)
    sieve = Sieve(settings)
    observer({"kind": "known", "sources": [*settings.evaluation, *settings.against]})
    told: dict[str, Any] = {"prompts": settings.prompts}
    example: list[tuple[Prompt, Prompt]] = []

    def ready() -> Iterator[_Ready]:
        for kept in sieve.pass_through(settings.prompts):
            item = _ready(kept, settings.template)
            if len(example) < (config.check.questions if compare and config else 1):
                example.append((kept.row.prompt, item.prompt))
            yield item

    rows: Iterable[_Ready] = ready()
    if settings.select is not None or settings.mix is not None:
        rows = list(rows)
        if settings.select is not None and config is not None:
            scores = path.with_name(path.name + ".scores.jsonl")
            rows, told["scores"] = _selected(rows, config, settings, scores, observer)
        if settings.mix is not None:
            rows, told["mixed"] = _mixed(rows, settings.mix, sieve, settings.template)
    with full_disk_told(path):
        written = _write((item.row for item in rows), path)
        told = {**sieve.summary(), **told, "written": written}
        if not written:
            path.unlink(missing_ok=True)
            raise DataError(f"{settings.prompts}: no prompt is left: {_why(told)}")
        report = path.with_name(path.name + ".report.jsonl")
        replace_text(report, "".join(to_json(hit.to_dict()) + "\n" for hit in sieve.hits))
    if settings.template is not None:
        before, after = example[0]
        told["example"] = {"before": before.question, "after": after.question}
    if compare and config is not None:
        told["comparison"] = _compared(example, config, path)
    told["seconds"] = round(time.monotonic() - started, 1)
    summary = path.with_name(path.name + ".summary.json")
    replace_text(summary, to_json(told))
    return RescuedPrompts(output=path, report=report, summary=told)


# --- template --------------------------------------------------------------------------------


def _ready(kept: Kept, template: str | None) -> _Ready:
    """A row with its id, and its question in the template."""
    prompt, row = kept.row.prompt, dict(kept.row.row)
    if not kept.row.has_id:
        row["id"] = prompt.id
    if template is None:
        return _Ready(kept, prompt, row)
    asked = replace(prompt, messages=(), text=kept.question)
    text = worded(asked, PromptFormat(user_prompt=template), "template").text
    if prompt.messages:
        system = [turn for turn in prompt.messages if turn.role == "system"]
        turns = (*system, Message("user", text))
        prompt = replace(prompt, messages=turns)
        row[kept.row.column] = [{"role": t.role, "content": t.content} for t in turns]
    else:
        prompt = replace(prompt, text=text)
        row[kept.row.column] = text
    return _Ready(kept, prompt, row)


def _compared(
    examples: Sequence[tuple[Prompt, Prompt]], config: Config, path: Path
) -> dict[str, dict[str, Any]]:
    """The pair on the same questions in the rows' own words and in the template."""
    files = {
        name: path.with_name(f"{path.stem}.{name}.jsonl") for name in ("questions", "template")
    }
    for column, file in enumerate(files.values()):
        _write((_plain_row(pair[column]) for pair in examples), file)
    changed = config.model_copy(
        update={
            "data": config.data.model_copy(update={"eval_prompts": str(files["questions"])}),
            "check": config.check.model_copy(
                update={
                    "budget": 0,
                    "prompt_sets": {"template": PromptSet(prompts=str(files["template"]))},
                }
            ),
        }
    )
    found = check(changed)
    looks = {look.prompt_set: look for look in found.looks if look.teacher == "teacher"}
    told: dict[str, dict[str, Any]] = {}
    for name, look in looks.items():
        agreement = look.agreement or {}
        told["after" if name == "template" else "before"] = {
            "verdict": look.verdict.word,
            **{key: agreement[key] for key in _COMPARED if key in agreement},
            **({} if look.capability is None else {"accuracy": look.capability["accuracy"]}),
        }
    return told


def _plain_row(prompt: Prompt) -> Row:
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt.messages]
    row: Row = {**prompt.metadata, "id": prompt.id, "prompt": turns or prompt.text}
    return row if prompt.answer is None else row | {"answer": prompt.answer}


# --- selection and mixing --------------------------------------------------------------------


def _selected(
    rows: Sequence[_Ready],
    config: Config,
    settings: PromptsRescue,
    ledger: Path,
    observer: Observer,
) -> tuple[list[_Ready], dict[str, Any]]:
    """Rows between two quantiles of a score, each with its scores and its difficulty."""
    assert settings.select is not None
    if not rows:
        return [], {}
    scores, too_long = score_prompts(
        [item.prompt for item in rows], config, settings, ledger, observer
    )
    difficulty = difficulties(scores, settings.select.by)
    chosen = select(difficulty, settings.select)
    found = [
        replace(
            item,
            row=item.row
            | {"scores": scores[item.prompt.id], "difficulty": difficulty[item.prompt.id]},
        )
        for item in rows
        if item.prompt.id in chosen
    ]
    return found, {
        "by": settings.select.by,
        "scored": len(scores),
        "too_long": too_long,
        "without_score": len(scores) - len(difficulty),
        "selected": len(found),
        "mean": mean_scores(scores),
        "mean_selected": mean_scores({name: scores[name] for name in chosen}),
    }


def _mixed(
    rows: Sequence[_Ready], mixture: Mixture, sieve: Sieve, template: str | None
) -> tuple[list[_Ready], dict[str, Any]]:
    """Rows with others strewn evenly among them, each with the name of its source."""
    others = [_ready(kept, template) for kept in sieve.pass_through(mixture.prompts)]
    wanted = round(mixture.share / (1 - mixture.share) * len(rows))
    if len(others) < wanted:
        raise DataError(
            f"{mixture.prompts} has {len(others)} prompts that repeat nothing, and mix.share "
            f"{mixture.share:g} beside {len(rows)} prompts takes {wanted}; lower mix.share, or "
            "give more of them"
        )
    others = [others[(2 * i + 1) * len(others) // (2 * wanted)] for i in range(wanted)]
    taken = {item.prompt.id for item in rows}
    own, stem = Path(sieve.settings.prompts).stem, Path(mixture.prompts).stem
    # A fraction of the way through each list orders both as one.
    placed = [((i + 0.5) / len(rows), _named(item, own)) for i, item in enumerate(rows)] + [
        ((i + 0.5) / wanted, _named(item, stem, taken)) for i, item in enumerate(others)
    ]
    placed.sort(key=lambda pair: pair[0])
    return [item for _, item in placed], {"source": mixture.prompts, "rows": wanted}


def _named(item: _Ready, source: str, taken: Container[str] = ()) -> _Ready:
    """A row that says where it comes from, with an id that no other row has."""
    row = dict(item.row)
    if item.prompt.source is None:
        row["source"] = source
    if item.prompt.id in taken:
        row["id"] = f"{source}/{item.prompt.id}"
    return replace(item, row=row)


# --- files -----------------------------------------------------------------------------------


def _require(settings: PromptsRescue, config: Config | None, compare: bool) -> None:
    if config is None and (compare or settings.select is not None):
        what = "compare" if compare else "select"
        raise UsageError(f"{what} measures a pair, so it needs the settings of a run: -c run.yaml")
    if compare and settings.template is None:
        raise UsageError("compare sets the rows' own words beside template; give a template")


def _write(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """The rows as a file that is whole or not there; how many."""
    temporary = path.with_name(path.name + ".tmp")
    write = _write_parquet if path.suffix == ".parquet" else _write_jsonl
    count = write(rows, temporary)
    temporary.replace(path)
    return count


def _write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
            count += 1
    return count


def _write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    import pyarrow
    import pyarrow.parquet

    remaining = iter(rows)
    count, writer, schema = 0, None, None
    try:
        while batch := [dict(row) for row in islice(remaining, _ROWS)]:
            table = pyarrow.Table.from_pylist(batch, schema=schema)
            if writer is None:
                schema = table.schema
                writer = pyarrow.parquet.ParquetWriter(path, schema)
            writer.write_table(table)
            count += len(batch)
    except pyarrow.ArrowException as error:
        raise DataError(
            f"the rows do not fit into one parquet table ({error}); write a .jsonl file"
        ) from None
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        path.touch()
    return count


def _why(told: Mapping[str, Any]) -> str:
    dropped = [
        f"{told['dropped'][part]} of {told['rows']} rows repeat {what}"
        for part, what in zip(
            PARTS, ("an evaluation set", "other prompts", "an earlier row"), strict=True
        )
        if told["dropped"][part]
    ]
    if scores := told.get("scores"):
        dropped.append(f"{scores['without_score']} have no score {scores['by']}")
        dropped.append(f"{scores['too_long']} are too long")
    return ", ".join(dropped) or "nothing was selected"
