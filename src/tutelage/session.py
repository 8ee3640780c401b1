"""What a run works with: models that fit together, prompts, a verifier.

Everything that cannot work is refused here, before a run directory is made.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from tutelage.config import (
    Config,
    CurrentTeacher,
    EMATeacher,
    InitialTeacher,
    ModelConfig,
    reference_models,
)
from tutelage.credit import read_table
from tutelage.data.prompts import LoadedPrompts, read_prompts, split_held_out, without
from tutelage.data.render import as_rendered
from tutelage.data.verify import Verify, choose_verifier
from tutelage.errors import DataError, UsageError
from tutelage.gradient import Models
from tutelage.metrics import overlap_k
from tutelage.models.average import Average
from tutelage.models.base import Sampler, Teacher
from tutelage.models.compatibility import require_context, require_same_tokens, share_vocabulary
from tutelage.models.facts import disagreements, facts_of
from tutelage.models.loading import load_model, load_reference, load_student
from tutelage.models.local import LocalModel
from tutelage.models.served.fleet import Fleet
from tutelage.models.served.server import Fingerprint, Server
from tutelage.models.served.student import serve_student
from tutelage.models.served.teacher import ServedTeacher, load_served_teacher
from tutelage.runs.directory import read_json
from tutelage.types import Prompt, RenderedPrompt, Rollout
from tutelage.views import (
    controlled,
    other_contexts,
    render_both_sides,
    show_siblings,
    wants_siblings,
)


@dataclass(frozen=True, kw_only=True)
class Session:
    """The loaded parts of a run."""

    models: Models
    """Student, teacher and references."""
    prompts: Sequence[RenderedPrompt]
    """Training prompts, rendered for the student."""
    held_out: Sequence[RenderedPrompt]
    """Evaluation prompts."""
    verify: Verify | None
    """Judges a completion; None where answers are not verified."""
    shows_siblings: bool
    """Whether the teacher is shown other rollouts of the question."""
    average: Average | None
    """Where the teacher is a moving average of the student: what moves it."""
    sampler: Sampler
    """Who draws the student's rollouts: the student itself, or a server with its weights."""
    servers: Mapping[str, Server | Fleet]
    """The servers in use, by the role they play."""
    notes: Sequence[dict[str, Any]]
    """What to record and show: how prompts were read, dropped prompts, differing stop ids,
    ignored weights; `text` says it in a line."""

    show_siblings: Callable[[Sequence[Rollout]], list[Rollout]]
    """Rollouts of a step with the other ones that their teacher is shown, where it is."""
    other_contexts: Mapping[str, tuple[int, ...]]
    """What a self-teacher reads of held-out questions beside another one's context, by prompt id;
    empty where there is no contrast."""

    def contexts_missing(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Share of the rollouts whose teacher had nothing to be shown, where it is shown some."""
        if not self.shows_siblings:
            return {}
        return {"context/missing": fmean(r.teacher_prompt_ids is None for r in rollouts)}

    def digests(self) -> dict[str, str]:
        """What tells whether these are still the same training and held-out prompts."""
        return {"prompts": digest(self.prompts), "held_out": digest(self.held_out)}

    def servers_record(self) -> dict[str, Any]:
        """What the servers said of themselves, for the run directory."""
        record: dict[str, Any] = {role: server.identity() for role, server in self.servers.items()}
        if isinstance(self.models.teacher, ServedTeacher):
            teacher = self.models.teacher
            record["teacher"] |= {
                "capabilities": asdict(teacher.capabilities),
                "question": asdict(teacher.question),
                "fingerprint": teacher.fingerprint.to_json(),
            }
        return record

    def require_same_prompts(self, path: Path, config: Config) -> None:
        """Refuse prompts other than those whose digests the run wrote to `path`.

        Raises:
            UsageError: the prompts, or what the models read of them, have changed.
        """
        before, now = read_json(path), self.digests()
        for part, source in (
            ("prompts", config.data.prompts),
            ("held_out", config.data.eval_prompts or config.data.prompts),
        ):
            if not isinstance(before, dict) or before.get(part) != now[part]:
                raise UsageError(
                    f"{source} has changed since the run began, or a template that renders it: its "
                    f"{part} are not those that {path} remembers, so what was drawn and measured "
                    "would not go on. Restore the file, or start a new run with another --run.dir"
                )

    def require_same_teacher(self, path: Path) -> None:
        """Refuse to resume with another served teacher than the run began with.

        Raises:
            ServerError: its log-probabilities of a fixed sequence are others.
        """
        if isinstance(self.models.teacher, ServedTeacher):
            began = read_json(path)
            teacher = self.models.teacher
            fingerprint = Fingerprint.from_json(began["teacher"]["fingerprint"])
            teacher.server.require_same(fingerprint, teacher.fingerprint.logprobs)


def prepare(config: Config, student_path: str | None = None) -> Session:
    """Load and fit together what the config names.

    `student_path` replaces the student's weights, on resume.

    Raises:
        TutelageError: what cannot work, and how to mend it.
    """
    prompts, held_out, read = split_prompts(config)
    verify = choose_verifier(config.data, [*prompts, *held_out])
    models, average = _load_models(config, student_path)
    sampler, servers = _connect(config, models)
    require_objective(config, models.student)
    tokenizers = models.student.tokenizer, models.teacher.tokenizer
    training, long_training = render_both_sides(config, prompts, *tokenizers)
    measured, long_measured = render_both_sides(config, held_out, *tokenizers)
    _require_prompts(config, training, long_training, read)
    everything = [*training, *measured]
    limits = {
        "rollout.max_new_tokens": config.rollout.max_new_tokens,
        "evaluation.max_new_tokens": config.evaluation.max_new_tokens or 0,
    }
    roles = {"student": models.student, "teacher": models.teacher, **models.references}
    for role, model in roles.items():
        for setting, new_tokens in limits.items():
            view = [p.for_teacher() if role == "teacher" else p for p in everything]
            require_context(model, role, max(len(p.ids) for p in view), new_tokens, setting)
    notes = [
        *_notes_on_prompts(config, read, len(held_out), (long_training, long_measured)),
        *_notes_on_models(config, roles),
        *_notes_on_servers(config),
    ]
    return Session(
        models=models,
        average=average,
        shows_siblings=wants_siblings(config),
        show_siblings=partial(show_siblings, config, models.teacher),
        other_contexts=other_contexts(config, measured, models.teacher.tokenizer),
        prompts=controlled(config, training, models.teacher.tokenizer),
        held_out=measured,
        verify=verify,
        sampler=sampler,
        servers=servers,
        notes=notes,
    )


def split_prompts(config: Config) -> tuple[list[Prompt], list[Prompt], dict[str, LoadedPrompts]]:
    """Training and held-out prompts, and how each source was read.

    Raises:
        TutelageError: as `read_prompts`.
    """
    read = {config.data.prompts: read_prompts(config.data.prompts)}
    prompts = read[config.data.prompts].prompts
    if (source := config.data.eval_prompts) is None:
        return *split_held_out(prompts, config.data.held_out), read
    read[source] = read_prompts(source)
    held_out = read[source].prompts
    return without(prompts, held_out), held_out, read


def _load_models(config: Config, student_path: str | None) -> tuple[Models, Average | None]:
    student = load_student(
        config.student,
        precision=config.optimizer.precision,
        seed=config.run.seed,
        checkpoint=student_path,
    )
    teacher, average = _load_teacher(config, student)
    references = {
        name: load_reference(setting, name, config.student, student)
        for name, setting in reference_models(config.objective).items()
    }
    frozen: list[Teacher] = [teacher, *references.values()]
    for model in frozen:
        require_same_tokens(student.tokenizer, model.tokenizer)
    share_vocabulary({"student": student, "teacher": teacher, **references})
    for model in (student, *frozen):
        model.temperature = config.rollout.temperature
        model.batch_size = config.rollout.batch_size
    return Models(student=student, teacher=teacher, references=references), average


def _load_teacher(config: Config, student: LocalModel) -> tuple[Teacher, Average | None]:
    match config.teacher:
        case InitialTeacher():
            return load_reference("initial", "teacher", config.student, student), None
        case CurrentTeacher():
            return student, None
        case EMATeacher(decay=decay):
            precision, seed = config.optimizer.precision, config.run.seed
            average = Average(load_student(config.student, precision=precision, seed=seed), decay)
            return average.model, average
        case model:
            return load_teacher(model, "teacher"), None


def load_teacher(settings: ModelConfig, role: str) -> Teacher:
    """A frozen model, in process or at its server.

    Raises:
        TutelageError: as `load_model` and `load_served_teacher`.
    """
    if settings.server is not None:
        return load_served_teacher(settings, role)
    model = load_model(settings, role)
    model.model.requires_grad_(False)
    return model


def model_paths(config: Config) -> dict[str, str]:
    """Folders of a run's models, by the setting that names them."""
    references = {
        f"objective.{name}.path": setting.path
        for name, setting in reference_models(config.objective).items()
        if setting != "initial"
    }
    return {
        "student.path": config.student.path,
        "teacher.path": config.teacher_model.path,
        **references,
    }


def _connect(config: Config, models: Models) -> tuple[Sampler, dict[str, Server | Fleet]]:
    """Who draws the student's rollouts, and the servers in use by role."""
    sampler: Sampler = models.student
    servers: dict[str, Server | Fleet] = {}
    if isinstance(models.teacher, ServedTeacher):
        k = overlap_k(config.run.metrics_k, models.student.vocabulary)
        models.teacher.prepare_for(config.objective, k)
        servers["teacher"] = models.teacher.server
    if config.student.server is not None:
        sampler = serve_student(config.student, models.student, model_paths(config))
        servers["student"] = sampler.server
    return sampler, servers


def _notes_on_prompts(
    config: Config, read: Mapping[str, LoadedPrompts], held_out: int, too_long: Sequence[int]
) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = [
        {"kind": "prompts_read", "source": source, "text": f"{source}: {loaded.layout}"}
        for source, loaded in read.items()
    ]
    if config.data.eval_prompts is None and held_out < config.data.held_out:
        notes.append(
            {
                "kind": "held_out_halved",
                "held_out": held_out,
                "text": f"{held_out} prompts are held out, half of all, where data.held_out asks "
                f"for {config.data.held_out}",
            }
        )
    if any(too_long):
        limit = config.data.max_prompt_tokens
        notes.append(
            {
                "kind": "prompts_dropped",
                "training": too_long[0],
                "evaluation": too_long[1],
                "limit": limit,
                "text": f"dropped {too_long[0]} training and {too_long[1]} held-out prompts longer "
                f"than data.max_prompt_tokens {limit}",
            }
        )
    return notes


def _notes_on_models(config: Config, roles: Mapping[str, Teacher]) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = []
    sides = [
        as_rendered(facts_of(settings, role, roles[role].tokenizer), settings)
        for role, settings in (("student", config.student), ("teacher", config.teacher_model))
    ]
    notes += [
        {"kind": signal.name, "text": f"{signal.evidence}; {signal.advice}"}
        for signal in disagreements(*sides)
    ]
    for role, model in roles.items():
        if model.ignored:
            notes.append(
                {
                    "kind": "weights_ignored",
                    "role": role,
                    "count": len(model.ignored),
                    "first": model.ignored[0],
                    "text": f"the {role} does not use {len(model.ignored)} of its stored weights "
                    f"(first: {model.ignored[0]}); its config.json may not belong to them",
                }
            )
    return notes


def _notes_on_servers(config: Config) -> list[dict[str, Any]]:
    notes: list[dict[str, Any]] = []
    for role, model in (("student", config.student), ("teacher", config.teacher_model)):
        server = model.server
        if server is None:
            continue
        if not server.is_loopback and "http:" in server.address:
            notes.append(
                {
                    "kind": "plain_http",
                    "role": role,
                    "text": f"the {role}'s server {server.address} is reached over plain http: "
                    "prompts"
                    f"{' and the API key' if server.key_env else ''} cross the network readable",
                }
            )
    if config.student.server is not None and config.rollout.temperature != 1.0:
        notes.append(
            {
                "kind": "drift_unknown",
                "text": "the student's server gives log-probabilities at temperature 1, so at "
                f"rollout.temperature {config.rollout.temperature:g} rollout/drift_k3 is absent",
            }
        )
    return notes


def require_objective(config: Config, student: LocalModel) -> None:
    """Refuse an objective that asks for more tokens than there are.

    Raises:
        UsageError: with the setting.
    """
    objective = config.objective
    sizes = {
        "objective.k": getattr(objective, "k", None),
        "objective.weight.k": getattr(objective.weight, "k", None),
        "objective.baseline.k": getattr(getattr(objective, "baseline", None), "k", None),
    }
    for setting, k in sizes.items():
        if k is not None and k > student.vocabulary:
            raise UsageError(
                f"{setting} is {k}, but the vocabulary has {student.vocabulary} tokens; "
                f"at most {student.vocabulary} is possible"
            )
    if objective.weight.type == "reliability":
        read_table(objective.weight.table)


def _require_prompts(
    config: Config,
    prompts: Sequence[RenderedPrompt],
    too_long: int,
    read: Mapping[str, LoadedPrompts],
) -> None:
    needed, data = config.rollout.prompts_per_step, config.data
    if len(prompts) >= needed:
        return
    held_out = len(read[data.prompts].prompts) - len(prompts) - too_long
    gone = [f"{too_long} are longer than data.max_prompt_tokens"] if too_long else []
    if held_out:
        where = "data.held_out sets aside" if data.eval_prompts is None else data.eval_prompts
        words = "are those that" if data.eval_prompts is None else "ask a question of"
        gone.append(f"{held_out} {words} {where}")
    why = f" ({'; '.join(gone)})" if gone else ""
    lower = ["rollout.prompts_per_step"] if prompts else []
    lower += ["data.held_out"] if data.eval_prompts is None and held_out else []
    raise DataError(
        f"{data.prompts} leaves {len(prompts)} training prompts{why}, but one step takes "
        f"{needed}; " + (f"lower {' or '.join(lower)}, or " if lower else "") + "add prompts"
    )


def digest(prompts: Sequence[RenderedPrompt]) -> str:
    """What tells whether rendered prompts, their answers and their order are the same."""
    content = [
        (
            p.prompt.id,
            p.prompt.text,
            [asdict(m) for m in p.prompt.messages],
            p.prompt.answer,
            p.ids,
            p.teacher_ids,
        )
        for p in prompts
    ]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=16).hexdigest()
