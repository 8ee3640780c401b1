"""A small alignment while a student trains: does its teacher still help?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tutelage.alignment.bench import Bench, conclude, plant, spread
from tutelage.alignment.estimates import Alignment
from tutelage.alignment.growing import records_of
from tutelage.alignment.job import candidates_of, fit_together, move_of
from tutelage.alignment.tree import NoSignal
from tutelage.config import Config
from tutelage.errors import DataError, UsageError
from tutelage.metrics import Record, overlap_k
from tutelage.models.base import Teacher
from tutelage.models.served.teacher import ServedTeacher
from tutelage.session import Session
from tutelage.types import RenderedPrompt


@dataclass(frozen=True)
class Probe:
    """Probes of one run; each draws afresh."""

    bench: Bench
    """The student as it trains, every teacher, and all held-out questions."""
    questions: int
    """How many of them a probe takes."""

    @property
    def external(self) -> dict[str, Teacher]:
        """Frozen models that may teach, by name."""
        student = self.bench.student
        return {c.name: c.model for c in self.bench.candidates if c.model is not student}

    def __call__(
        self,
        step: int,
        teacher: str,
        fits: Callable[[RenderedPrompt], bool] = lambda prompt: True,
    ) -> tuple[Record, Alignment | None]:
        """What a probe says of the present teacher after `step` steps, and of all of them.

        A record without numbers tells that the student is right, or wrong, everywhere, or that
        its completions have become too long for the budget.

        Args:
            step: optimizer steps taken.
            teacher: name of the present teacher.
            fits: which of the held-out questions may be asked.

        Raises:
            UsageError: the budget is too small before training.
        """
        told: Record = {"alignment/teacher": teacher}
        bench = self.bench.at(step)
        pool = [prompt for prompt in bench.prompts if fits(prompt)]
        if not pool:
            return told | {"alignment/note": "no held-out question is as easy as the window"}, None
        bench = replace(bench, prompts=spread(pool, self.questions))
        try:
            tree = plant(bench)
        except (DataError, UsageError) as error:
            if isinstance(error, UsageError) and step == 0:
                raise
            if isinstance(error, NoSignal):
                told["alignment/accuracy"] = error.accuracy
            return told | {"alignment/note": str(error)}, None
        told["alignment/accuracy"] = tree.accuracy
        found = conclude(bench, tree, records_of(bench, tree))
        told["alignment/tokens"] = found.tokens + tree.natural_tokens
        pooled = found.pooled[teacher, "objective"]
        if pooled.reliability is not None:
            told["alignment/reliability"] = pooled.reliability
        for name in ("advantage", "dot", "alignment"):
            estimate = getattr(pooled, name)
            if estimate is None:
                continue
            key = "alignment/cosine" if name == "alignment" else f"alignment/{name}"
            told[key] = estimate.value
            if estimate.interval is not None:
                told[f"{key}/low"], told[f"{key}/high"] = estimate.interval
        return told, found


def make_probe(config: Config, session: Session) -> Probe | None:
    """The probe that the settings ask for.

    Raises:
        TutelageError: a further teacher that cannot be used, or an objective without a move.
    """
    settings = config.align.probe
    if settings is None:
        return None
    if session.verify is None or not session.held_out:
        raise UsageError(
            "align.probe judges rollouts of held-out questions; set data.verifier, and "
            "data.held_out or data.eval_prompts"
        )
    student, teacher = session.models.student, session.models.teacher
    candidates = candidates_of(config, student, teacher)
    fit_together(config, student, candidates)
    for candidate in candidates:
        if isinstance(candidate.model, ServedTeacher) and candidate.model is not teacher:
            k = overlap_k(config.run.metrics_k, student.vocabulary)
            candidate.model.prepare_for(config.objective, k)  # it may become the run's
    return Probe(
        bench=Bench(
            student=student,
            sampler=session.sampler,
            candidates=candidates,
            objectives={"objective": move_of("objective", config.objective, candidates)},
            prompts=session.held_out,
            verify=session.verify,
            settings=config.align.model_copy(update={"budget": settings.budget}),
            max_new_tokens=config.rollout.max_new_tokens,
            temperature=config.rollout.temperature,
            use_chat_template=config.data.use_chat_template,
            seed=config.run.seed,
        ),
        questions=settings.questions,
    )


def best_teacher(found: Alignment, names: Sequence[str]) -> str | None:
    """Of these teachers, the one with the largest advantage, if its interval is above 0."""
    advantages = {name: found.pooled[name, "objective"].advantage for name in names}
    helpful = {n: a.value for n, a in advantages.items() if a.interval and a.interval[0] > 0}
    return max(helpful, key=lambda name: helpful[name], default=None)
