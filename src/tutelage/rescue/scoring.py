"""What a pair makes of each prompt: agreement, success of both sides, and who rescues whom."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from tutelage.config import Config
from tutelage.config.rescue import PromptsRescue, ScoreName, Selection
from tutelage.data.verify import Verify, choose_verifier, judge
from tutelage.diagnose.continuation import right_shares
from tutelage.errors import DataError, UsageError
from tutelage.gradient import Models, measure
from tutelage.metrics import overlap_k
from tutelage.models.base import Sampler
from tutelage.models.compatibility import require_context, require_same_tokens, share_vocabulary
from tutelage.models.loading import load_model
from tutelage.models.served.student import serve_student
from tutelage.models.served.teacher import ServedTeacher
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.ledger import Ledger
from tutelage.session import load_teacher, model_paths
from tutelage.types import Prompt, RenderedPrompt, Rollout, SamplingParams
from tutelage.views import render_both_sides, wants_siblings

SCORE_STEP = -7
"""A step that no training step, evaluation, check or alignment has."""
_MICRO_BATCH = 32
_BLOCK = 64
_HIGH_FIRST = {
    "overlap": True,
    "kl": False,
    "teacher_pass_rate": True,
    "student_pass_rate": True,
    "learnability": True,
    "rescue": True,
}
_JUDGED = ("teacher_pass_rate", "student_pass_rate", "learnability", "rescue")

Scores = dict[str, float]
Observer = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class PairBench:
    """A loaded pair, and how it is asked."""

    models: Models
    """Student and teacher."""
    sampler: Sampler
    """Who draws the student's answers."""
    verify: Verify | None
    """Judges an answer; None where nobody does."""
    params: SamplingParams
    """How answers are drawn, as in training."""
    samples: int
    """Answers of either side to each prompt."""
    depth: float
    """Share of a wrong answer from which the teacher goes on."""
    with_rescue: bool
    """Whether it does."""
    seed: int
    """Of all draws."""
    overlap_k: int
    """Size of the top-k sets."""

    def score(self, prompts: Sequence[RenderedPrompt]) -> list[Scores]:
        """Scores of each prompt; what is undefined of one is absent.

        overlap and kl are means over the student's own tokens, of the shared part of both
        sides' most likely tokens and of KL(student || teacher) in nats. Pass rates are shares
        of the judged completions. rescue is the share of the teacher's right continuations
        from `depth` of the student's wrong answers.
        """
        drawn = self._draw(self.sampler, prompts)
        table, rows = measure(
            self.models, drawn, micro_batch_size=_MICRO_BATCH, overlap_k=self.overlap_k
        )
        of_prompt = rows // self.samples
        found: list[Scores] = []
        teacher = [[] for _ in prompts] if self.verify is None else self._teacher_rewards(prompts)
        for i in range(len(prompts)):
            mine = drawn[i * self.samples : (i + 1) * self.samples]
            scores = {
                name: value
                for name, key in (("overlap", "overlap/ratio"), ("kl", "kl/reverse"))
                if key in table and (value := _mean(table[key][of_prompt == i])) is not None
            }
            own = [r.reward for r in mine if r.reward is not None]
            if own:
                rate = fmean(own)
                scores |= {"student_pass_rate": rate, "learnability": rate * (1 - rate)}
            if teacher[i]:
                scores["teacher_pass_rate"] = fmean(teacher[i])
            found.append(scores)
        if self.with_rescue:
            for i, share in self._rescued(drawn).items():
                found[i]["rescue"] = share
        return found

    def _draw(self, sampler: Sampler, prompts: Sequence[RenderedPrompt]) -> list[Rollout]:
        drawn = sampler.sample(
            prompts, self.params, group_size=self.samples, seed=self.seed, step=SCORE_STEP
        )
        return drawn if self.verify is None else judge(drawn, self.verify)

    def _teacher_rewards(self, prompts: Sequence[RenderedPrompt]) -> list[list[float]]:
        drawn = self._draw(self.models.teacher, [prompt.for_teacher() for prompt in prompts])
        groups = [drawn[i : i + self.samples] for i in range(0, len(drawn), self.samples)]
        return [[r.reward for r in group if r.reward is not None] for group in groups]

    def _rescued(self, drawn: Sequence[Rollout]) -> dict[int, float]:
        """Share of right continuations by prompt, where the student was wrong."""
        assert self.verify is not None
        wrong = [(i // self.samples, r) for i, r in enumerate(drawn) if r.reward == 0]
        wrong = [(i, r) for i, r in wrong if len(r.completion_ids) > 1]
        if not wrong:
            return {}
        shares = right_shares(
            self.models.teacher,
            [rollout for _, rollout in wrong],
            [self.depth],
            self.verify,
            self.params,
            samples=1,
            seed=self.seed,
            as_teacher=True,
        )[:, 0]
        by_prompt: dict[int, list[float]] = {}
        for (i, _), share in zip(wrong, shares.tolist(), strict=True):
            if not np.isnan(share):
                by_prompt.setdefault(i, []).append(share)
        return {i: fmean(values) for i, values in by_prompt.items()}


def score_prompts(
    prompts: Sequence[Prompt],
    config: Config,
    settings: PromptsRescue,
    ledger: Path,
    observer: Observer = lambda record: None,
) -> tuple[dict[str, Scores], int]:
    """Scores by prompt id, and how many prompts were too long and have none.

    Every scored prompt is a line of `ledger`, so that a stopped run goes on where it was; a
    prompt's draws depend on nothing but the seed and its id.

    Raises:
        TutelageError: models or settings that cannot work.
        Preempted: a signal, after the prompts at hand were written.
    """
    verify = choose_verifier(config.data, prompts)
    if settings.select is not None and settings.select.by in _JUDGED and verify is None:
        raise UsageError(
            f"select.by {settings.select.by} judges answers, so the run's settings need "
            "data.verifier; set one, or select by overlap or kl"
        )
    bench, rendered, dropped = _prepare(prompts, config, settings, verify)
    done = Ledger(ledger)
    _require_same_settings(done, config, settings)
    missing = [prompt for prompt in rendered if _unit(prompt) not in done]
    with Interrupts() as interrupts:
        for start in range(0, len(missing), _BLOCK):
            block = missing[start : start + _BLOCK]
            for prompt, scores in zip(block, bench.score(block), strict=True):
                done.record(_unit(prompt), {"scores": scores})
            scored = sum(_unit(prompt) in done for prompt in rendered)
            observer({"kind": "scored", "done": scored, "of": len(rendered)})
            interrupts.heed(
                f"; {scored} of {len(rendered)} prompts are scored in {ledger}, and the same "
                "command goes on from there"
            )
    return {p.prompt.id: done[_unit(p)]["scores"] for p in rendered}, dropped


def difficulties(scores: Mapping[str, Scores], by: ScoreName) -> dict[str, float]:
    """Places of prompts from the easiest or best aligned, 0, to the hardest, 1.

    Equal scores share the middle of their places; a prompt without the score has no place.
    """
    sign = -1 if _HIGH_FIRST[by] else 1
    ordered = sorted((sign * s[by], name) for name, s in scores.items() if by in s)
    places: dict[float, list[int]] = {}
    for place, (value, _) in enumerate(ordered):
        places.setdefault(value, []).append(place)
    last = max(1, len(ordered) - 1)
    return {name: fmean(places[value]) / last for value, name in ordered}


def select(difficulty: Mapping[str, float], chosen: Selection) -> set[str]:
    """The prompts between two quantiles of difficulty; equal ones in the order given."""
    ordered = sorted(difficulty, key=lambda name: difficulty[name])
    first, last = round(chosen.low * len(ordered)), round(chosen.high * len(ordered))
    return set(ordered[first:last])


def _prepare(
    prompts: Sequence[Prompt], config: Config, settings: PromptsRescue, verify: Verify | None
) -> tuple[PairBench, list[RenderedPrompt], int]:
    if wants_siblings(config):
        raise UsageError(
            "prompts are scored with a teacher that reads no other answers of the student; give "
            "a teacher.path, or a self-teacher with the context answer"
        )
    student = load_model(config.student, "student")
    teacher = load_teacher(config.teacher_model, "teacher")
    require_same_tokens(student.tokenizer, teacher.tokenizer)
    share_vocabulary({"student": student, "teacher": teacher})
    for model in (student, teacher):
        model.temperature = config.rollout.temperature
        model.batch_size = config.rollout.batch_size
    k = overlap_k(config.run.metrics_k, student.vocabulary)
    if isinstance(teacher, ServedTeacher):
        teacher.prepare_for(config.objective, k)
    sampler: Sampler = student
    if config.student.server is not None:
        sampler = serve_student(config.student, student, model_paths(config))
    rendered, dropped = render_both_sides(config, prompts, student.tokenizer, teacher.tokenizer)
    if not rendered:
        raise DataError(
            f"all {dropped} prompts exceed data.max_prompt_tokens {config.data.max_prompt_tokens}"
        )
    rollout = config.rollout
    for model, role in ((student, "student"), (teacher, "teacher")):
        view = [p.for_teacher() if role == "teacher" else p for p in rendered]
        longest = max(len(p.ids) for p in view)
        require_context(model, role, longest, rollout.max_new_tokens, "rollout.max_new_tokens")
    bench = PairBench(
        models=Models(student=student, teacher=teacher, references={}),
        sampler=sampler,
        verify=verify,
        params=SamplingParams(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        ),
        samples=settings.samples,
        depth=settings.depth,
        with_rescue=settings.select is not None and settings.select.by == "rescue",
        seed=config.run.seed,
        overlap_k=k,
    )
    return bench, rendered, dropped


def _unit(prompt: RenderedPrompt) -> str:
    """A prompt's name in the ledger: another text under the same id is another unit."""
    ids = json.dumps([prompt.ids, prompt.teacher_ids, prompt.prompt.answer])
    return f"{prompt.prompt.id}/{hashlib.blake2b(ids.encode(), digest_size=8).hexdigest()}"


def _require_same_settings(ledger: Ledger, config: Config, settings: PromptsRescue) -> None:
    """Scores of one ledger come from one pair, asked in one way."""
    asked: dict[str, Any] = {
        "student": config.student.model_dump(mode="json"),
        "teacher": config.teacher.model_dump(mode="json"),
        "rollout": config.rollout.model_dump(mode="json", exclude={"batch_size"}),
        "verifier": config.data.model_dump(mode="json")["verifier"],
        "seed": config.run.seed,
        "samples": settings.samples,
        "depth": settings.depth,
        "rescue": settings.select is not None and settings.select.by == "rescue",
    }
    if "settings" not in ledger:
        ledger.record("settings", {"asked": asked})
        return
    before = ledger["settings"]["asked"]
    changed = [name for name, value in asked.items() if before.get(name) != value]
    if changed:
        raise UsageError(
            f"{ledger.path} holds scores of another {' and '.join(changed)}; delete it to score "
            "anew, or choose another --output"
        )


def _mean(values: torch.Tensor) -> float | None:
    known = values[~values.isnan()].double()
    return known.mean().item() if len(known) else None


def mean_scores(scores: Mapping[str, Scores]) -> Scores:
    """Means of every score over the prompts that have it."""
    columns = {name: [s[name] for s in scores.values() if name in s] for name in _HIGH_FIRST}
    return {name: fmean(values) for name, values in columns.items() if values}
