"""What the probes of a run lead to: which teacher, how much of it, which prompts."""

from collections.abc import Sequence

from tutelage import signals
from tutelage.alignment.curriculum import Curriculum
from tutelage.alignment.estimates import Alignment
from tutelage.alignment.probe import best_teacher, make_probe
from tutelage.config import (
    Config,
    CurriculumPolicy,
    LowerWeightPolicy,
    StopPolicy,
    SwitchTeacherPolicy,
)
from tutelage.metrics import Record
from tutelage.models.base import Teacher
from tutelage.session import Session
from tutelage.signals.guards import Signal
from tutelage.types import RenderedPrompt

FIRST_TEACHER = "teacher"


class Guidance:
    """The probes of a run so far; all that follows from them is read off their records."""

    def __init__(self, config: Config, session: Session) -> None:
        self.settings, self.session = config.align.probe, session
        self.probe = make_probe(config, session)
        self.records: list[Record] = []
        policy = self.settings.policy if self.settings is not None else None
        self.curriculum = (
            Curriculum.of(policy, session.prompts, config.rollout.prompts_per_step)
            if isinstance(policy, CurriculumPolicy)
            else None
        )

    # --- what holds now ----------------------------------------------------------------------

    @property
    def teacher_name(self) -> str:
        """Name of the teacher that the student moves towards."""
        return self.records[-1]["alignment/next_teacher"] if self.records else FIRST_TEACHER

    @property
    def teacher(self) -> Teacher:
        """The teacher that the student moves towards."""
        if self.probe is None or self.teacher_name == FIRST_TEACHER:
            return self.session.models.teacher
        return self.probe.external[self.teacher_name]

    @property
    def weight(self) -> float:
        """What the probes leave of the teacher's term."""
        return self.records[-1].get("alignment/next_weight", 1.0) if self.records else 1.0

    def prompts(self, step: int) -> tuple[Sequence[RenderedPrompt], int, tuple[int, ...]]:
        """The prompts in use, how many steps they have been so, and a key for their order."""
        if self.curriculum is None:
            return self.session.prompts, step, ()
        window, since = self.curriculum.window(self.records)
        return self.curriculum.prompts[:window], step - since, (window,)

    def ends(self, step: int) -> str | None:
        """The signal that ends the run at this step, if its policy says so."""
        settings = self.settings
        if self.probe is None or settings is None or step % settings.every:
            return None
        signal = signals.of_probes(self.records, settings.patience)
        return signal.name if signal and isinstance(settings.policy, StopPolicy) else None

    # --- a probe -----------------------------------------------------------------------------

    def is_due(self, step: int) -> bool:
        """Whether a probe is taken now; none is taken twice at a step, as after a resume."""
        if self.probe is None or self.settings is None or step % self.settings.every:
            return False
        return not any(record["step"] == step for record in self.records)

    def ask(self, step: int) -> tuple[Record, Alignment | None]:
        """A probe's record, and what it found."""
        assert self.probe is not None
        record: Record = {"kind": "probe", "step": step}
        if (curriculum := self.curriculum) is None:
            told, found = self.probe(step, self.teacher_name)
        else:
            window, _ = curriculum.window(self.records)
            record["alignment/window"] = window
            told, found = self.probe(step, self.teacher_name, lambda p: curriculum.fits(p, window))
        return record | told, found

    def decide(self, record: Record, found: Alignment | None) -> tuple[Signal | None, str | None]:
        """Add to a record what goes on from here; its signal, and what is new in words."""
        assert self.settings is not None
        signal = signals.of_probes([*self.records, record], self.settings.patience)
        exhausted = signal is not None and signal.name == "teacher_exhausted"
        policy, done, teacher = self.settings.policy, None, self.teacher_name
        if exhausted and isinstance(policy, SwitchTeacherPolicy) and found and self.probe:
            others = [name for name in self.probe.external if name != teacher]
            if better := best_teacher(found, others):
                done = teacher = better
        record["alignment/next_teacher"] = teacher
        if isinstance(policy, LowerWeightPolicy):
            weight = self.weight
            lower = max(policy.floor, policy.factor * weight)
            if exhausted and lower < weight:
                weight, done = lower, f"the teacher's term at {lower:.3g} of its weight"
            record["alignment/next_weight"] = weight
        if self.curriculum is not None:
            window = record["alignment/window"]
            if exhausted or record.get("alignment/accuracy") == 1:
                wider = self.curriculum.wider(window)
                done = f"the easiest {wider} prompts" if wider > window else None
                window = wider
            record["alignment/next_window"] = window
        return signal, done
