"""How good is a model: avg@n and pass@k with intervals, question by question."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from tutelage.config import (
    DataConfig,
    Engine,
    EvaluationConfig,
    LocalEngine,
    ModelConfig,
    RolloutConfig,
    section,
)
from tutelage.data.prompts import load_prompts
from tutelage.data.render import render
from tutelage.data.verify import Verify, choose_verifier, judge
from tutelage.errors import DataError, UsageError
from tutelage.metrics import Record, by_source
from tutelage.models.base import Sampler, Teacher
from tutelage.models.compatibility import require_context
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.models.served.teacher import load_served_teacher
from tutelage.ops.intervals import pass_at_k, proportion_interval
from tutelage.runs.directory import full_disk_told, output_file, replace_text, to_json
from tutelage.scale.engines import workers_of
from tutelage.scale.sampling import SharedSampler
from tutelage.types import RenderedPrompt, Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class Question:
    """The judged samples of one prompt."""

    rollouts: tuple[Rollout, ...]

    @property
    def judged(self) -> list[float]:
        """Rewards of the samples that could be judged."""
        return [r.reward for r in self.rollouts if r.reward is not None]

    @property
    def accuracy(self) -> float | None:
        """Share of judged samples that are right; None if none was judged."""
        return fmean(self.judged) if self.judged else None

    @property
    def unformatted(self) -> float | None:
        """Share of judged samples that are wrong for want of an answer in the expected form.

        They ended by themselves: what the token limit cut off is truncated, and not among them.
        None if none was judged or the verifier expects no form.
        """
        judged = [r for r in self.rollouts if r.reward is not None and r.has_answer is not None]
        return fmean(map(_is_unformatted, judged)) if judged else None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All questions of one evaluation."""

    questions: tuple[Question, ...]
    was_judged: bool = True
    """Whether there was a verifier; without one nothing is unknown, it is not asked."""

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], samples: int, *, was_judged: bool) -> "Evaluation":
        """That of rollouts which are `samples` of each question, question by question."""
        starts = range(0, len(rollouts), samples)
        questions = tuple(Question(tuple(rollouts[i : i + samples])) for i in starts)
        return cls(questions, was_judged=was_judged)

    @property
    def rollouts(self) -> list[Rollout]:
        """Every rollout, question by question."""
        return [rollout for question in self.questions for rollout in question.rollouts]

    @property
    def accuracies(self) -> list[float]:
        """Accuracy of each question that could be judged."""
        return [a for a in (question.accuracy for question in self.questions) if a is not None]

    def record(self, ks: Sequence[int] = ()) -> Record:
        """avg@n and pass@k with 95 % intervals over questions, in all and by data source.

        The share that is wrong for want of an answer is of the same samples. Without a judged
        question there is only how many samples are unknown.
        """
        unknown = sum(rollout.reward is None for rollout in self.rollouts)
        counted: Record = {"accuracy/unknown": unknown} if unknown and self.was_judged else {}
        if not self.accuracies:
            return counted
        samples = max(len(question.rollouts) for question in self.questions)
        record: Record = {"accuracy/questions": len(self.accuracies)}
        record |= _estimate(f"accuracy/avg@{samples}", self.accuracies)
        record |= _estimate("accuracy", self.accuracies)
        shares = [u for u in (question.unformatted for question in self.questions) if u is not None]
        if shares:
            record["accuracy/unformatted"] = fmean(shares)
        for k in ks:
            values = [
                pass_at_k(round(sum(q.judged)), len(q.judged), k)
                for q in self.questions
                if len(q.judged) >= k
            ]
            if values:
                record |= _estimate(f"accuracy/pass@{k}", values)
        for name, places in by_source([q.rollouts[0].prompt for q in self.questions]).items():
            values = [a for i in places if (a := self.questions[i].accuracy) is not None]
            if values:
                record |= _estimate(f"accuracy/source/{name}", values)
                record[f"accuracy/source/{name}/questions"] = len(values)
        return record | counted


def evaluate(
    sampler: Sampler,
    prompts: Sequence[RenderedPrompt],
    verify: Verify | None,
    params: SamplingParams,
    *,
    samples: int = 1,
    seed: int = 0,
    step: int = 0,
) -> Evaluation:
    """Sample every prompt and judge what came.

    Evaluations of the same seed and step draw the same uniforms, so two models
    are compared on equal luck.
    """
    rollouts = sampler.sample(prompts, params, group_size=samples, seed=seed, step=step)
    if verify is not None:
        rollouts = judge(rollouts, verify)
    return Evaluation.of(rollouts, samples, was_judged=verify is not None)


def evaluate_model(
    model: ModelConfig,
    data: DataConfig,
    *,
    samples: int = 4,
    ks: Sequence[int] = (1,),
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int = 0,
    output: str | Path | None = None,
    engine: Engine | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Record:
    """The verb `eval`: a model on a prompts file, with the judged samples in `output`.

    Where samples are drawn (`engine`) changes none; a worker holds the model as a student's does.
    `tell` hears of workers that die.

    Raises:
        UsageError: a setting out of range, a model that cannot be loaded, or no verifier.
        DataError: a prompts file that cannot be used.
    """
    drawing = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
    section(EvaluationConfig, {"samples": samples, **drawing}, "eval")
    path = None if output is None else output_file(output)
    if any(not 1 <= k <= samples for k in ks):
        raise UsageError(f"pass@k needs 1 <= k <= samples, got k {list(ks)} of {samples} samples")
    prompts = load_prompts(data.prompts)
    verify = choose_verifier(data, prompts)
    if verify is None:
        raise UsageError(
            "eval needs a verifier: --verifier exact, numeric, math, pattern:REGEX or function:PATH"
        )
    role = "evaluated"
    loaded: Teacher = (
        load_model(model, role) if model.server is None else load_served_teacher(model, role)
    )
    rendered, dropped = render(
        prompts, loaded.tokenizer, model, data.max_prompt_tokens, data.use_chat_template, "model"
    )
    if not rendered:
        raise DataError(f"all {dropped} prompts exceed max_prompt_tokens {data.max_prompt_tokens}")
    longest = max(len(p.ids) for p in rendered)
    require_context(loaded, "model", longest, max_new_tokens, "max_new_tokens", None)
    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    with workers_of(engine or LocalEngine(), "student", tell=tell) as map_units:
        sampler: Sampler = loaded
        if isinstance(loaded, LocalModel):
            sampler = SharedSampler(loaded, model, role, map_units)
        evaluation = evaluate(sampler, rendered, verify, params, samples=samples, seed=seed)
    record = evaluation.record(ks)
    record["rollout/length"] = fmean(len(r.completion_ids) for r in evaluation.rollouts)
    record["rollout/truncated"] = fmean(r.finish_reason == "length" for r in evaluation.rollouts)
    if dropped:
        record["prompts_dropped"] = dropped
    if path is not None:
        with full_disk_told(path):
            write_questions(evaluation, path)
    return record


def teacher_pass_rates(
    teacher: Sampler,
    rollouts: Sequence[Rollout],
    verify: Verify | None,
    settings: RolloutConfig,
    *,
    samples: int,
    seed: int,
    step: int,
) -> dict[str, float | None]:
    """How often a teacher itself solves each prompt of some rollouts; None: all unknown."""
    prompts = {
        r.prompt.id: RenderedPrompt(prompt=r.prompt, ids=r.teacher_prompt_ids or r.prompt_ids)
        for r in rollouts
    }
    params = SamplingParams(
        max_new_tokens=settings.max_new_tokens, temperature=settings.temperature
    )
    result = evaluate(
        teacher, list(prompts.values()), verify, params, samples=samples, seed=seed, step=step
    )
    return {q.rollouts[0].prompt.id: q.accuracy for q in result.questions}


def write_questions(evaluation: Evaluation, path: Path) -> None:
    """One JSON line a question: its accuracy, its answer and the samples as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        to_json(
            {
                "id": question.rollouts[0].prompt.id,
                "question": question.rollouts[0].prompt.question,
                "answer": question.rollouts[0].prompt.answer,
                "accuracy": question.accuracy,
                **({} if question.unformatted is None else {"unformatted": question.unformatted}),
                "samples": [_sample(rollout) for rollout in question.rollouts],
            }
        )
        for question in evaluation.questions
    ]
    replace_text(path, "".join(line + "\n" for line in lines))


def _sample(rollout: Rollout) -> dict[str, object]:
    sample: dict[str, object] = {
        "text": rollout.text,
        "reward": rollout.reward,
        "finish_reason": rollout.finish_reason,
    }
    return sample if rollout.has_answer is None else sample | {"has_answer": rollout.has_answer}


def _is_unformatted(rollout: Rollout) -> bool:
    return rollout.reward == 0 and not rollout.has_answer and rollout.finish_reason == "stop"


def _estimate(key: str, values: Sequence[float]) -> Record:
    low, high = proportion_interval(values)
    return {key: fmean(values), f"{key}/low": low, f"{key}/high": high}
