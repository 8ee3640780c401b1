"""Answers of the teacher, slot by slot: draw, filter, try again.

A slot is one answer wanted of one question. Every try is a line of the ledger, kept or
rejected with its reason, and its draws depend on (seed, question, index, attempt) alone:
after a kill nothing is drawn twice and nothing is lost.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from tutelage.config import ColdStartConfig
from tutelage.data.verify import Verify, judge
from tutelage.errors import GuardStop
from tutelage.models.anatomy import decode_text
from tutelage.models.base import Teacher
from tutelage.rescue.degenerate import find_repetition
from tutelage.runs.ledger import Ledger
from tutelage.scale.units import Job, MapUnits, in_process, nothing
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

FIRST_ATTEMPT = -100
"""The step of first attempts, each further one below it; nothing else draws there."""
HOPELESS = 200
"""Tries of which none was kept, after which no further one is made."""
_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")
_THOUGHT_TOKENS = 16  # more than an empty thought has

_TOLD = {
    "cut": "cut at the token limit",
    "empty": "empty",
    "no_answer": "without a final answer in the expected form",
    "repeated_line": "with a repeated line",
    "repeated_passage": "with a repeated passage",
    "repeated_loop": "ending in a loop",
    "unknown": "of unknown correctness",
    "wrong": "wrong",
}


@dataclass(kw_only=True)
class Tally:
    """Counts of tries and slots."""

    slots: int
    """Answers wanted."""
    kept: int = 0
    """Answers there are."""
    tries: int = 0
    """Rollouts drawn."""
    tokens: int = 0
    """Tokens of all tries."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected tries by reason."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Count a line of the ledger."""
        self.tries += 1
        self.tokens += line["tokens"]
        if line["rejected"]:
            self.rejected[line["rejected"]] += 1
        else:
            self.kept += 1

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the most frequent reason first."""
        dropped = self.slots - self.kept
        return {**vars(self), "dropped": dropped, "rejected": dict(self.rejected.most_common())}


@dataclass(frozen=True, slots=True)
class AnswerBench:
    """What drawing an answer takes."""

    teacher: Teacher
    """Who answers."""
    verify: Verify | None
    """Who judges."""
    params: SamplingParams
    """How answers are drawn."""
    right_only: bool
    """As `ColdStartConfig.right_only`."""
    seed: int
    """Decides every draw."""


@dataclass(frozen=True, slots=True)
class AnswerBatch:
    """Slots that are tried together."""

    slots: tuple[tuple[RenderedPrompt, int], ...]
    """Question, as the teacher reads it, and index."""
    attempt: int
    """How often they were tried before."""


def answer(bench: AnswerBench, batch: AnswerBatch) -> list[tuple[str, dict[str, Any]]]:
    """A line of the ledger for each slot of a batch, by its unit."""
    wanted = {(prompt.prompt.id, index) for prompt, index in batch.slots}
    drawn = bench.teacher.sample(
        list({prompt.prompt.id: prompt for prompt, _ in batch.slots}.values()),
        bench.params,
        group_size=1 + max(index for _, index in batch.slots),
        seed=bench.seed,
        step=FIRST_ATTEMPT - batch.attempt,
        only=lambda id_, index: (id_, index) in wanted,
    )
    judged = drawn if bench.verify is None else judge(drawn, bench.verify)
    return [
        (_unit(r.prompt.id, r.index, batch.attempt), _line(r, rejection(r, bench.right_only)))
        for r in judged
    ]


def fill_slots(
    bench: AnswerBench,
    prompts: Sequence[RenderedPrompt],
    settings: ColdStartConfig,
    ledger: Ledger,
    *,
    after: Callable[[Tally], None] = lambda tally: None,
    heed: Callable[[], None] = nothing,
    map_units: MapUnits = in_process,
    elsewhere: Callable[[], AnswerBench] | None = None,
) -> tuple[list[Rollout], Tally]:
    """Draw until every slot has an answer or no attempt left; the answers, and what was counted.

    Answers stand under the question as the student reads it. `after` sees the counts after every
    batch; `heed` is called between batches, and may raise to stop. Workers in other processes load
    what `elsewhere` loads.

    Raises:
        GuardStop: nothing that the teacher says can be imitated.
    """
    by_id = {prompt.prompt.id: prompt for prompt in prompts}
    names = [(id_, index) for id_ in by_id for index in range(settings.rollouts)]
    tally = Tally(slots=len(names))
    for name in names:
        for line in _tries(*name, ledger):
            tally.add(line)

    def between() -> None:
        _require_some(tally, HOPELESS)
        heed()

    job = Job(prepare=elsewhere or (lambda: bench), work=answer, here=bench)
    for attempt in range(settings.attempts if settings.temperature else 1):
        units = {
            f"{_unit(*batch[0], attempt)} and its batch": AnswerBatch(
                tuple((by_id[id_].for_teacher(), index) for id_, index in batch), attempt
            )
            for batch in _batches(_open(names, attempt, ledger), bench.teacher.batch_size)
        }
        for _, lines in map_units(job, units, between=between):
            for unit, line in lines:
                ledger.record(unit, line)
                tally.add(line)
            after(tally)
    _require_some(tally, 1)
    kept = [
        _answer(by_id[id_], index, line, bench.teacher.tokenizer)
        for id_, index in names
        for line in _tries(id_, index, ledger)
        if not line["rejected"]
    ]
    return kept, tally


def rejection(rollout: Rollout, right_only: bool) -> str | None:
    """Why an answer is not imitated, the first reason that holds; None: it is."""
    if rollout.finish_reason == "length":
        return "cut"
    if not rollout.text.strip():
        return "empty"
    if rollout.has_answer is False:
        return "no_answer"
    if repetition := find_repetition(rollout.text):
        return f"repeated_{repetition.kind}"
    if right_only and rollout.reward != 1:
        return "unknown" if rollout.reward is None else "wrong"
    return None


def without_empty_thought(
    prompt: Sequence[int], completion: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Prompt and completion with an empty think block that begins the completion moved away.

    It comes from a template, not from thought, so it is read and not learnt; where the prompt
    ends with one already, it is left out.
    """
    size = 0
    for end in range(1, min(_THOUGHT_TOKENS, len(completion)) + 1):
        if _THOUGHT.fullmatch(decode_text(tokenizer, completion[:end], special=True)):
            size = end
    block, rest = tuple(completion[:size]), tuple(completion[size:])
    tail = decode_text(tokenizer, prompt[-_THOUGHT_TOKENS:], special=True)
    has_one = tail.rstrip().endswith("</think>")
    return (*prompt, *(() if has_one else block)), rest


def reasons_told(rejected: Mapping[str, int]) -> str:
    """Counted reasons in words."""
    ordered = Counter(rejected).most_common()
    return ", ".join(f"{count} {_TOLD[r]}" for r, count in ordered)


def _unit(id_: str, index: int, attempt: int) -> str:
    return f"{id_}/{index}/{attempt}"


def _line(rollout: Rollout, reason: str | None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "rejected": reason,
        "finish_reason": rollout.finish_reason,
        "reward": rollout.reward,
        "tokens": len(rollout.completion_ids),
        "text": rollout.text,
    }
    return line if reason else line | {"ids": rollout.completion_ids}


def _tries(id_: str, index: int, ledger: Ledger) -> Iterator[dict[str, Any]]:
    attempt = 0
    while (unit := _unit(id_, index, attempt)) in ledger:
        yield ledger[unit]
        attempt += 1


def _open(names: Sequence[tuple[str, int]], attempt: int, ledger: Ledger) -> list[tuple[str, int]]:
    """Slots that this attempt is for, and that it was not made for yet."""
    found: list[tuple[str, int]] = []
    for name in names:
        tries = list(_tries(*name, ledger))
        if len(tries) == attempt and all(line["rejected"] for line in tries):
            found.append(name)
    return found


def _batches(names: list[tuple[str, int]], size: int) -> Iterator[list[tuple[str, int]]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _answer(
    asked: RenderedPrompt, index: int, line: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> Rollout:
    prompt, completion = without_empty_thought(asked.ids, line["ids"], tokenizer)
    return Rollout(
        prompt=asked.prompt,
        index=index,
        prompt_ids=prompt,
        completion_ids=completion,
        logprobs=(0.0,) * len(completion),
        finish_reason=line["finish_reason"],
        text=line["text"],
        policy_step=0,
        source="teacher",
        reward=line["reward"],
    )


def _require_some(tally: Tally, tries: int) -> None:
    if tally.kept or tally.tries < tries:
        return
    reason = tally.rejected.most_common(1)[0][0]
    cure = {
        "cut": "raise cold_start.max_new_tokens, or choose a teacher that ends its answers",
        "no_answer": "ask for the form that data.verifier expects, in teacher.user_prompt",
        "wrong": "choose easier questions or an abler teacher, or leave right_only out",
        "unknown": "mend data.verifier, or leave right_only out",
    }.get(reason, "look at its answers in rollouts.jsonl, and choose another teacher or template")
    raise GuardStop(
        f"none of {tally.tries} answers of the teacher can be imitated: "
        f"{reasons_told(tally.rejected)}. To mend it: {cure}"
    )
