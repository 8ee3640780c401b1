"""The verb `align`: an alignment with its files."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.alignment.bench import Bench, conclude, plant, spread
from tutelage.alignment.estimates import Alignment, plain
from tutelage.alignment.growing import grow_all
from tutelage.alignment.measured import gather, node_scores
from tutelage.alignment.moves import ObjectiveMove, as_move, require_listable
from tutelage.alignment.plan import plan_of
from tutelage.alignment.records import reliability_table, token_records
from tutelage.alignment.spines import Candidate
from tutelage.alignment.tree import Tree, load_tree, save_tree
from tutelage.config import (
    CONTEXTS,
    Config,
    ModelConfig,
    Objective,
    PromptFormat,
    dump_config,
)
from tutelage.data.prompts import load_prompts
from tutelage.data.render import render
from tutelage.data.verify import choose_verifier
from tutelage.errors import DataError, UsageError
from tutelage.models.base import Sampler, Teacher
from tutelage.models.checkpoints import pin_models
from tutelage.models.compatibility import require_context, require_same_tokens, share_vocabulary
from tutelage.models.loading import load_model
from tutelage.models.local import LocalModel
from tutelage.models.served.student import serve_student
from tutelage.models.served.teacher import ServedTeacher
from tutelage.ops.alignment.pooling import pool
from tutelage.runs.directory import (
    create_run,
    environment,
    full_disk_told,
    replace_text,
    reserve_run,
    to_json,
)
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.ledger import Ledger
from tutelage.runs.lock import locked
from tutelage.runs.resuming import reopen
from tutelage.scale.engines import workers_of
from tutelage.session import load_teacher, model_paths

Observer = Callable[[dict[str, Any]], None]
_SHOW_EVERY_S = 2.0
_DRAWS_SO_FAR = 200


def align(
    config: Config,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer = lambda record: None,
) -> Alignment:
    """Say, without training, where each teacher pushes the student towards success.

    The directory `output` keeps what every number comes from: spines.jsonl, nodes.jsonl,
    rollouts.jsonl (a line a finished branch), alignment.json, tokens.jsonl, reliability.json.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.
    """
    if resume and overwrite:
        raise UsageError("--resume continues and --overwrite deletes; give one of them")
    with full_disk_told(output), locked(output):
        if resume:
            run, config = reopen(output, config)
            folder = run.path
            bench = prepare_bench(config)
            if (folder / "tree.json").exists():
                tree = load_tree(folder, {p.prompt.id: p.prompt for p in bench.prompts})
            else:  # killed before it was written
                tree = plant(bench)
                save_tree(tree, folder)
        else:
            reserve_run(output, overwrite=overwrite)
            config = pin_models(config)
            bench = prepare_bench(config)
            tree = plant(bench)
            settings = dump_config(config)
            folder = create_run(output, overwrite=overwrite).path
            replace_text(folder / "config.yaml", settings)  # first: now it can go on
            replace_text(folder / "environment.json", to_json(environment()))
            save_tree(tree, folder)
        ledger = Ledger(folder / "rollouts.jsonl")
        with Interrupts() as interrupts:
            observer({"kind": "plan", **plan_of(tree)})
            _fill(bench, tree, config, ledger, interrupts, observer)
        records = ledger.records
        found = conclude(bench, tree, records)
        write_results(bench, tree, records, found, folder)
    return found


def _fill(
    bench: Bench,
    tree: Tree,
    config: Config,
    ledger: Ledger,
    interrupts: Interrupts,
    observer: Observer,
) -> None:
    """Roll out what the ledger lacks."""

    def heed() -> None:
        interrupts.heed(
            f"; every finished rollout is kept in {ledger.path.parent}; continue with tutelage "
            "align --resume"
        )

    shown = time.monotonic()
    with workers_of(config.engine, "student", tell=lambda t: observer(_note(t))) as map_units:
        for part in grow_all(
            bench, tree, map_units, config=config, done=ledger.__contains__, between=heed
        ):
            for name, record in part:
                ledger.record(name, record)
            if time.monotonic() - shown > _SHOW_EVERY_S:
                observer(_so_far(bench, tree, ledger))
                shown = time.monotonic()


def _note(text: str) -> dict[str, Any]:
    return {"kind": "note", "text": text}


def prepare_bench(config: Config) -> Bench:
    """Load and fit together what the config names.

    Raises:
        TutelageError: what cannot work, and how to mend it.
    """
    settings = config.align
    if config.rollout.top_p < 1 or config.rollout.top_k:
        raise UsageError(
            "align compares the student's probabilities with the success of its own rollouts, so "
            "both must come from one distribution; leave rollout.top_p 1 and rollout.top_k 0"
        )
    source = config.data.eval_prompts or config.data.prompts
    prompts = load_prompts(source)
    verify = choose_verifier(config.data, prompts)
    if verify is None:
        raise UsageError(
            "align asks after which tokens answers come out right, so it needs data.verifier"
        )
    student = load_model(config.student, "student")
    candidates = candidates_of(config, student)
    fit_together(config, student, candidates)
    objectives = {"objective": config.objective, **settings.objectives}
    moves = {name: move_of(name, o, candidates) for name, o in objectives.items()}
    sampler: Sampler = student
    if config.student.server is not None:
        sampler = serve_student(config.student, student, model_paths(config))
    rendered, dropped = render(
        prompts,
        student.tokenizer,
        config.student,
        config.data.max_prompt_tokens,
        config.data.use_chat_template,
    )
    if not rendered:
        raise DataError(f"{source}: all {dropped} prompts exceed data.max_prompt_tokens")
    chosen = spread(rendered, settings.questions)
    longest = max(len(prompt.ids) for prompt in chosen)
    require_context(student, "student", longest, config.rollout.max_new_tokens)
    return Bench(
        student=student,
        sampler=sampler,
        candidates=candidates,
        objectives=moves,
        prompts=chosen,
        verify=verify,
        settings=settings,
        max_new_tokens=config.rollout.max_new_tokens,
        temperature=config.rollout.temperature,
        use_chat_template=config.data.use_chat_template,
        seed=config.run.seed,
    )


def candidates_of(
    config: Config,
    student: LocalModel,
    teacher: Teacher | None = None,
    without: Sequence[str] = (),
) -> list[Candidate]:
    """All teachers of `align`, `without` some; those of one path share their weights.

    `teacher` is the run's, where it is loaded: then the student trains, and a teacher at its path
    is the student as it was.

    Raises:
        TutelageError: a teacher that cannot be loaded or reached, or has other tokens.
    """
    loaded: dict[tuple[Any, ...], Teacher] = {}
    if teacher is None:
        loaded[_weights(config.student.model_copy(update={"server": None}))] = student
    else:
        loaded[_weights(config.teacher_model)] = teacher
    found: list[Candidate] = []
    for name, settings in {"teacher": config.teacher_model, **config.align.teachers}.items():
        if name in without:
            continue
        role = "teacher" if name == "teacher" else f"align.teachers.{name}"
        key = _weights(settings)
        if key not in loaded:
            loaded[key] = load_teacher(settings, role)
            require_same_tokens(student.tokenizer, loaded[key].tokenizer)
        view = _view(settings)
        found.append(Candidate(name=name, model=loaded[key], view=view))
    for context in config.align.contexts:
        format_ = config.student.model_dump(include=set(PromptFormat.model_fields))
        view = PromptFormat(**{**format_, "user_prompt": CONTEXTS[context]})
        found.append(Candidate(name=f"self:{context}", model=student, view=view))
    return found


def _weights(settings: ModelConfig) -> tuple[Any, ...]:
    """What tells whether two settings mean the same model at the same place."""
    return settings.path, settings.revision, settings.dtype, settings.server


def move_of(name: str, objective: Objective, candidates: Sequence[Candidate]) -> ObjectiveMove:
    """The move of an objective of the settings, for all these teachers.

    Raises:
        UsageError: it needs more than the two distributions at a state, or more of a teacher than
            its server gives.
    """
    where = "objective" if name == "objective" else f"align.objectives.{name}"
    try:
        move = as_move(objective)
    except ValueError as error:
        raise UsageError(f"{where} has no move at a single state: {error}") from None
    for candidate in candidates:
        if isinstance(candidate.model, ServedTeacher):
            require_listable(where, objective, candidate.model)
    return move


def _view(settings: ModelConfig) -> PromptFormat | None:
    return settings if settings.own_prompt else None


def fit_together(config: Config, student: LocalModel, candidates: Sequence[Candidate]) -> None:
    """Let all models use the same ids and the run's temperature."""
    others = {id(c.model): c.model for c in candidates if c.model is not student}
    named = {c.name: c.model for c in candidates if c.model is not student}
    share_vocabulary({"student": student, **named})
    for model in (student, *others.values()):
        model.temperature, model.batch_size = config.rollout.temperature, config.rollout.batch_size


def write_results(
    bench: Bench,
    tree: Tree,
    records: Sequence[Mapping[str, Any]],
    found: Alignment,
    folder: Path,
) -> None:
    """alignment.json, tokens.jsonl, and reliability.json where there is such a table."""
    nodes = gather(tree, records, use_backup=bench.settings.backup)
    lines = token_records(tree, nodes, bench.student.tokens)
    replace_text(folder / "tokens.jsonl", "".join(to_json(line) + "\n" for line in lines))
    if (table := reliability_table(nodes, tree, "teacher")) is not None:
        replace_text(folder / "reliability.json", to_json(table))
    replace_text(folder / "alignment.json", to_json({"plan": plan_of(tree), **found.to_dict()}))


def _so_far(bench: Bench, tree: Tree, ledger: Ledger) -> dict[str, Any]:
    """A first answer from the questions that are done."""
    done = len(ledger)
    told: dict[str, Any] = {"kind": "progress", "done": done, "of": len(tree.branches)}
    try:
        nodes = gather(tree, ledger.records, use_backup=bench.settings.backup)
    except ValueError:  # no node is done yet
        return told
    scores, rows = node_scores(
        nodes, tree.teachers.index("teacher"), tree.objectives.index("objective")
    )
    if not len(rows):
        return told
    questions = [nodes.questions[i] for i in rows]
    pooled = pool(scores, questions, nodes.weights[rows], draws=_DRAWS_SO_FAR)
    return told | plain(
        {
            "questions": pooled.questions,
            "advantage": pooled.advantage.value,
            "advantage_interval": pooled.advantage.interval,
        }
    )
