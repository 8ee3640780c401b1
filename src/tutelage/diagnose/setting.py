"""One prompt set with everyone who is compared on it, and the small alignment of a check."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tutelage.alignment.bench import Bench, conclude, places, plant
from tutelage.alignment.estimates import Alignment
from tutelage.alignment.growing import records_of
from tutelage.alignment.job import move_of
from tutelage.alignment.spines import Candidate
from tutelage.alignment.tree import Tree
from tutelage.config import Config, Full, ReverseKL
from tutelage.data.verify import Verify
from tutelage.errors import DataError, UsageError
from tutelage.models.base import Sampler, Teacher
from tutelage.models.local import LocalModel
from tutelage.scale.units import MapUnits, in_process
from tutelage.signals import Signal
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

_LEAST_QUESTIONS = 8
"""Below so many an interval over questions says nothing."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One prompt set, and who is compared on it."""

    config: Config
    """The run's settings with this set's prompts."""
    name: str
    """Of the prompt set."""
    student: LocalModel
    """Who would learn."""
    candidates: Sequence[Candidate]
    """Who might teach."""
    questions: Sequence[RenderedPrompt]
    """What is asked."""
    verify: Verify | None
    """Judges an answer; None where nobody does."""
    signals: Mapping[str, Sequence[Signal]]
    """What was noticed of each teacher without weights."""
    map_units: MapUnits = in_process
    """Who does what falls into units."""
    samplers: Mapping[int, Sampler] = field(default_factory=dict)
    """Who draws in a model's place, by the model's `id`; a model draws itself without."""

    def sampler_of(self, model: Teacher) -> Sampler:
        """Who draws what this model would."""
        return self.samplers.get(id(model), model)

    @property
    def params(self) -> SamplingParams:
        """How completions are drawn, as in training."""
        rollout = self.config.rollout
        return SamplingParams(
            max_new_tokens=rollout.max_new_tokens,
            temperature=rollout.temperature,
            top_p=rollout.top_p,
            top_k=rollout.top_k,
        )


def align_small(
    setting: Setting,
    drawn: Sequence[Rollout],
    heard: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Alignment | None, list[str]]:
    """A small alignment on the natural rollouts at hand, or why there is none.

    `heard` is told now and then how many branches are rolled out, of how many.
    """
    config, where = setting.config, f"{setting.name}: no alignment: "
    if setting.verify is None:
        return None, [where + "answers are not verified"]
    if not config.check.budget:
        return None, [where + "check.budget is 0"]
    if config.rollout.top_p < 1 or config.rollout.top_k:
        return None, [where + "rollout.top_p and rollout.top_k change what the student draws"]
    notes: list[str] = []
    try:
        move = move_of("objective", config.objective, setting.candidates)
    except UsageError:
        move = move_of("objective", Full(divergence=ReverseKL()), setting.candidates)
        notes.append(
            f"{setting.name}: the alignment takes the full reverse KL in place of "
            f"{config.objective.type}, which has no move at a single state"
        )
    bench = Bench(
        student=setting.student,
        sampler=setting.student,
        candidates=setting.candidates,
        objectives={"objective": move},
        prompts=setting.questions,
        verify=setting.verify,
        settings=config.align.model_copy(
            update={"budget": config.check.budget, "samples": config.check.samples}
        ),
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        use_chat_template=config.data.use_chat_template,
        seed=config.run.seed,
    )
    try:
        tree, asked = _plant_within_budget(bench, drawn)
    except (DataError, UsageError) as error:  # no outcome to learn from, or too small a budget
        return None, [*notes, where + str(error)]
    if asked < len(setting.questions):
        notes.append(
            f"{setting.name}: check.budget {config.check.budget:,} pays for an alignment on "
            f"{asked} of {len(setting.questions)} questions"
        )
    records = records_of(
        bench,
        tree,
        setting.map_units,
        config,
        heard=lambda done: heard(done, len(tree.branches)),
    )
    return conclude(bench, tree, records), notes


def _plant_within_budget(bench: Bench, drawn: Sequence[Rollout]) -> tuple[Tree, int]:
    """A tree with as many spines a question as the budget allows, else on fewer questions.

    Returns the tree and the number of its questions.
    """
    samples = bench.settings.samples
    spines, asked = min(bench.settings.spines, samples), len(bench.prompts)
    while True:
        settings = bench.settings.model_copy(update={"spines": spines})
        chosen = places(len(bench.prompts), asked)
        natural = [r for i in chosen for r in drawn[i * samples : (i + 1) * samples]]
        try:
            return plant(replace(bench, settings=settings), natural), asked
        except UsageError:  # the budget is below the floor of so many
            if spines > 1:
                spines //= 2
            elif asked >= 2 * _LEAST_QUESTIONS:
                asked //= 2
            else:
                raise
