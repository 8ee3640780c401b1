"""Students and teachers whose relation is known, made from a spec and a seed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from transformers import LlamaForCausalLM

from tutelage.lab.models import Size, Training, fresh_model, train_model
from tutelage.lab.tasks import ModTotal, RunningTotal, SolutionStyle, Task


def running_total_models() -> dict[str, Training]:
    """The models that the package ships."""
    weak = SolutionStyle(skill=0.15)
    return {
        "student": Training(style=weak),
        "compatible": Training(
            start="student",
            style=SolutionStyle(hard_share=0.55, templates="X"),
            steps=300,
            lr=2e-3,
            curriculum=False,
        ),
        "incompatible": Training(style=SolutionStyle(pattern="backward"), steps=850),
        "same_data": Training(size=Size(width=96, heads=3), style=weak, steps=650),
    }


def mod_total_models() -> dict[str, Training]:
    """The same four on `ModTotal`, which takes longer to learn."""
    weak = SolutionStyle(skill=0.25)
    return {
        "student": Training(style=weak, steps=1000, until_accuracy=0.2),
        "compatible": Training(
            start="student",
            style=SolutionStyle(hard_share=0.55, templates="X"),
            steps=250,
            lr=2e-3,
            curriculum=False,
            until_accuracy=0.95,
        ),
        "incompatible": Training(
            style=SolutionStyle(pattern="backward"), steps=1000, until_accuracy=0.95
        ),
        "same_data": Training(size=Size(width=96, heads=3), style=weak, steps=1000),
    }


@dataclass(frozen=True, kw_only=True)
class PairSpec:
    """A task and the models trained on it; the default is the pair the package ships.

    `student` is weak at hard operands, `compatible` is the student after
    post-training, `incompatible` writes the other pattern, `same_data` is
    larger but has seen nothing the student has not.
    """

    task: Task = RunningTotal()
    models: Mapping[str, Training] = field(default_factory=dict)
    """How each model is made, by name; a model may only start from an earlier one. Empty takes the
    four models of the task."""

    def __post_init__(self) -> None:
        if not self.models:
            of_task = mod_total_models if isinstance(self.task, ModTotal) else running_total_models
            object.__setattr__(self, "models", of_task())


def make_pair(
    spec: PairSpec,
    seed: int,
    progress: Callable[[str, int, float], None] | None = None,
) -> dict[str, LlamaForCausalLM]:
    """Train every model of the spec; the same spec and seed give the same weights."""
    made: dict[str, LlamaForCausalLM] = {}
    for index, (name, training) in enumerate(spec.models.items()):
        model_seed = 1000 * seed + index
        if training.start is None:
            model = fresh_model(training.size, model_seed, spec.task.vocabulary)
        elif training.start in made:
            model = fresh_model(spec.models[training.start].size, model_seed, spec.task.vocabulary)
            model.load_state_dict(made[training.start].state_dict())
        else:
            raise ValueError(
                f"model {name!r} starts from {training.start!r}, which is not made before it; "
                f"made so far: {', '.join(made) or 'none'}"
            )
        report = (lambda step, loss, name=name: progress(name, step, loss)) if progress else None
        made[name] = train_model(model, spec.task, training, model_seed, report)
    return made
