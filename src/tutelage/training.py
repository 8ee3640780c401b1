"""The loop of on-policy distillation.

One step, top to bottom: choose prompts, sample them from the student, judge the
answers, score every sampled token with the teacher, step towards it, record.
"""

import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tutelage import signals
from tutelage.config import Config, OptimizerConfig, dump_config, parse_config
from tutelage.data.collate import collate
from tutelage.data.prompts import load_prompts, split_held_out, without
from tutelage.data.render import render
from tutelage.data.verify import Verify, choose_verifier
from tutelage.errors import DataError, GuardStop, Preempted, UsageError
from tutelage.evaluation import evaluate, write_questions
from tutelage.metrics import (
    Record,
    TokenTable,
    concatenate,
    overlap_k,
    stop_masses,
    summarise_positions,
    summarise_rollouts,
    summarise_tokens,
    token_statistics,
)
from tutelage.models.base import Scorer
from tutelage.models.compatibility import require_context, require_same_tokens, share_vocabulary
from tutelage.models.local import LocalModel, load_model
from tutelage.objective import token_losses
from tutelage.runs.checkpoints import (
    Checkpoint,
    newest_checkpoint,
    prune,
    restore_optimizer,
    save_checkpoint,
)
from tutelage.runs.directory import (
    Run,
    append_line,
    create_run,
    environment,
    finite,
    open_run,
    read_lines,
    replace_text,
    reserve_run,
    to_json,
)
from tutelage.runs.interrupts import Interrupts
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

Observer = Callable[[Record], None]
CHANGEABLE_ON_RESUME = {"run.steps", "run.max_hours", "run.dir"}


@dataclass(frozen=True)
class TrainResult:
    """How a run ended."""

    run: Path
    """Its directory."""
    outcome: str
    """finished, early_stop or time_limit."""
    step: int
    """Optimizer steps taken."""
    checkpoint: Path
    """The last checkpoint; transformers loads it."""
    best_step: int
    """Step of the best held-out evaluation."""
    first: Record
    """The evaluation before training."""
    last: Record
    """The evaluation after it."""


def train(
    config: Config,
    *,
    resume: bool = False,
    overwrite: bool = False,
    observer: Observer = lambda record: None,
) -> TrainResult:
    """Distil the teacher into the student, on the student's own samples.

    Raises:
        TutelageError: whatever the user can mend; see `tutelage.errors`.

    """
    run = reopen_run(config) if resume else reserve_run(config.run.dir, overwrite=overwrite)
    trainer = Trainer.prepare(config, run, observer, resume)
    if not resume:  # only now, so that a run that cannot start leaves nothing behind
        begin_run(run, config, overwrite=overwrite)
    for note in trainer.notes:
        run.log_event(**note)
    with Interrupts() as interrupts:
        outcome = "finished"
        if trainer.step == 0:
            trainer.evaluate()
        while trainer.step < config.run.steps:
            prompts = trainer.next_prompts()
            rollouts = trainer.sample(prompts)
            trainer.update(rollouts)
            trainer.watch()
            if trainer.due(config.evaluation.every):
                trainer.evaluate()
            if trainer.due(config.run.save_every):
                trainer.save()
            if interrupts.requested:
                trainer.save()
                raise Preempted(
                    f"stopped by {interrupts.requested} at step {trainer.step}, state saved; "
                    "continue with --resume"
                )
            if trainer.stalled():
                outcome = "early_stop"
                break
            if trainer.out_of_time():
                outcome = "time_limit"
                break
        last = trainer.evaluate()
        checkpoint = trainer.save()
    run.log_event("end", outcome=outcome, step=trainer.step)
    return TrainResult(
        run=run.path,
        outcome=outcome,
        step=trainer.step,
        checkpoint=checkpoint,
        best_step=trainer.best_step,
        first=trainer.first_evaluation,
        last=last,
    )


class Trainer:
    """The state of a run, and the stages of its step."""

    def __init__(
        self,
        config: Config,
        run: Run,
        student: LocalModel,
        teacher: LocalModel,
        prompts: Sequence[RenderedPrompt],
        held_out: Sequence[RenderedPrompt],
        verify: Verify | None,
        observer: Observer,
    ) -> None:
        self.config, self.run, self.observer = config, run, observer
        self.student, self.teacher = student, teacher
        self.prompts, self.held_out, self.verify = prompts, held_out, verify
        self.optimizer = torch.optim.AdamW(
            student.model.parameters(),
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            weight_decay=config.optimizer.weight_decay,
        )
        self.k = overlap_k(config.run.metrics_k, student.vocabulary)
        self.metric = config.evaluation.metric or ("accuracy" if verify else "reverse_kl")
        self.step = 0
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.best_step, self.best_value, self.evaluations_since_best = 0, -math.inf, 0
        self.records: list[dict[str, Any]] = []
        self.warned: set[str] = set()
        self.evaluated: dict[int, Record] = {}
        self.first_evaluation: Record = {}
        self.notes: list[dict[str, Any]] = []

    @classmethod
    def prepare(cls, config: Config, run: Run, observer: Observer, resume: bool) -> "Trainer":
        """Load everything, refuse what cannot work, and restore the state on resume."""
        checkpoint, skipped = newest_checkpoint(run.checkpoints) if resume else (None, [])
        prompts, held_out, verify = _data(config)
        student_settings = config.student
        if checkpoint is not None:
            student_settings = student_settings.model_copy(update={"path": str(checkpoint.path)})
        student = load_model(student_settings, "student")
        teacher = load_model(config.teacher, "teacher")
        require_same_tokens(student.tokenizer, teacher.tokenizer)
        share_vocabulary(student, teacher)
        for model in (student, teacher):
            model.temperature = config.rollout.temperature
            model.batch_size = config.rollout.batch_size
        teacher.model.requires_grad_(False)
        notes: list[dict[str, Any]] = []
        rendered = [
            render(
                part,
                student.tokenizer,
                config.student.template,
                config.data.max_prompt_tokens,
                config.data.use_chat_template,
            )
            for part in (prompts, held_out)
        ]
        (train_prompts, too_long), (eval_prompts, eval_too_long) = rendered
        if too_long or eval_too_long:
            notes.append(
                {
                    "kind": "prompts_dropped",
                    "training": too_long,
                    "evaluation": eval_too_long,
                    "limit": config.data.max_prompt_tokens,
                }
            )
        _require_prompts(config, train_prompts, too_long)
        longest = max(len(p.ids) for p in [*train_prompts, *eval_prompts])
        for role, model in (("student", student), ("teacher", teacher)):
            require_context(model, role, longest, config.rollout.max_new_tokens)
        if student.stop_ids != teacher.stop_ids:
            notes.append(
                {
                    "kind": "stop_ids_differ",
                    "student": sorted(student.stop_ids),
                    "teacher": sorted(teacher.stop_ids),
                }
            )
        trainer = cls(config, run, student, teacher, train_prompts, eval_prompts, verify, observer)
        trainer.notes = notes
        if checkpoint is not None:
            trainer.restore(checkpoint, skipped)
        return trainer

    # --- the stages of a step ----------------------------------------------------------------

    def next_prompts(self) -> list[RenderedPrompt]:
        """The prompts of this step: every epoch walks them all in an order of its own."""
        count = self.config.rollout.prompts_per_step
        per_epoch = len(self.prompts) // count
        epoch, place = divmod(self.step, per_epoch)
        order = np.random.default_rng([self.config.run.seed, epoch]).permutation(len(self.prompts))
        return [self.prompts[i] for i in order[place * count : (place + 1) * count]]

    def sample(self, prompts: Sequence[RenderedPrompt]) -> list[Rollout]:
        """Rollouts of the student at its current weights, judged where answers can be."""
        self.timings = Timings()
        with self.timings("rollout"):
            rollouts = self.student.sample(
                prompts,
                _sampling(self.config),
                group_size=self.config.rollout.group_size,
                seed=self.config.run.seed,
                step=self.step,
            )
        if self.verify is not None:
            with self.timings("verify"):
                rollouts = [replace(r, reward=self.verify(r.prompt, r.text)) for r in rollouts]
        return rollouts

    def update(self, rollouts: Sequence[Rollout]) -> None:
        """One optimizer step on all rollouts, and its record."""
        lr = learning_rate(self.config.optimizer, self.step, self.config.run.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss, table, rows, positions, padding = self.accumulate(rollouts)
        with self.timings("optimizer"):
            norm = torch.nn.utils.clip_grad_norm_(
                self.student.model.parameters(), self.config.optimizer.grad_clip
            ).item()
            applied = math.isfinite(norm) and math.isfinite(loss)
            if applied:
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.student.policy_step = self.step
        record: Record = {"kind": "train", "step": self.step, "applied": applied, "lr": lr}
        record |= finite({"loss": loss, "grad_norm": norm})
        record |= finite(summarise_tokens(table) | summarise_rollouts(rollouts, table, rows))
        record |= self.timings.record(int(record["tokens"]), padding)
        self.log(record)
        append_line(
            self.run.path / "positions.jsonl",
            {"step": self.step}
            | summarise_positions(table, positions, self.config.rollout.max_new_tokens),
        )

    def accumulate(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[float, TokenTable, Tensor, Tensor, float]:
        """Gradients of the whole step, micro-batch by micro-batch, under one denominator."""
        scorer: Scorer = self.teacher
        # Neighbours in length share a micro-batch, so little of it is padding.
        order = sorted(range(len(rollouts)), key=lambda i: _length(rollouts[i]))
        size = self.config.optimizer.micro_batch_size
        total, tables, rows, positions = 0.0, list[TokenTable](), list[Tensor](), list[Tensor]()
        used = padded = 0
        for start in range(0, len(order), size):
            places = torch.tensor(order[start : start + size])
            batch = collate([rollouts[i] for i in places.tolist()])
            with self.timings("score"):
                teacher = scorer.score(batch)
            with self.timings("update"):
                student = self.student.state_logprobs(batch)
                sampled = batch.targets.to(student.device)
                output = token_losses(self.config.objective, student, teacher, sampled)
                weights = self.token_weights(rollouts, places[batch.rows]).to(output.losses)
                loss = (output.losses * weights).sum()
                loss.backward()
            with self.timings("metrics"), torch.no_grad():
                table = token_statistics(student, teacher, sampled, self.k)
                table |= {"loss": output.losses.detach(), **output.metrics}
                table |= stop_masses(
                    student, teacher, batch.rows, self.student.stop_ids | self.teacher.stop_ids
                )
                tables.append({key: value.detach().cpu() for key, value in table.items()})
            total += loss.item()
            rows.append(places[batch.rows])
            positions.append(batch.positions)
            used += int(batch.attention_mask.sum())
            padded += batch.attention_mask.numel()
        table = concatenate(tables)
        table.pop("loss")
        return total, table, torch.cat(rows), torch.cat(positions), 1 - used / padded

    def token_weights(self, rollouts: Sequence[Rollout], rows: Tensor) -> Tensor:
        """Share of each token in the loss: the denominators span the whole step."""
        lengths = torch.tensor([len(r.completion_ids) for r in rollouts], dtype=torch.float64)
        if self.config.optimizer.aggregation == "token_mean":
            return torch.full((len(rows),), 1 / lengths.sum().item(), dtype=torch.float64)
        return 1 / (len(rollouts) * lengths[rows])

    def watch(self) -> None:
        """Guards on what was recorded; a warning is given once.

        Raises:
            GuardStop: a guard that ends the run.

        """
        guards = self.config.guards
        noticed = (
            signals.non_finite(self.records, guards.non_finite_limit),
            signals.truncation(self.records, guards.truncated, guards.window),
            signals.length(self.records, guards.length_factor, guards.window),
        )
        for signal in noticed:
            if signal is None:
                continue
            stop = signal.severity == "stop" or guards.stop
            if stop or signal.name not in self.warned:
                self.warned.add(signal.name)
                self.run.log_event(
                    "signal",
                    step=self.step,
                    name=signal.name,
                    severity="stop" if stop else "warning",
                    evidence=signal.evidence,
                    advice=signal.advice,
                )
                self.observer(
                    {
                        "kind": "signal",
                        "step": self.step,
                        "name": signal.name,
                        "evidence": signal.evidence,
                        "advice": signal.advice,
                    }
                )
            if stop:
                raise GuardStop(f"{signal.name}: {signal.evidence}. To mend it: {signal.advice}")

    def evaluate(self) -> Record:
        """Held-out accuracy and agreement at this step; the best checkpoint is kept."""
        if not self.held_out:
            return {}
        if self.step in self.evaluated:
            return self.evaluated[self.step]
        settings = self.config.evaluation
        params = SamplingParams(
            max_new_tokens=settings.max_new_tokens or self.config.rollout.max_new_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        started = time.monotonic()
        result = evaluate(
            self.student,
            self.held_out,
            self.verify,
            params,
            samples=settings.samples,
            seed=self.config.run.seed,
            step=-1,
        )
        table, rows, scores = self.measure(result.rollouts)
        record: Record = {"kind": "eval", "step": self.step}
        record |= result.record(ks=[settings.samples] if settings.samples > 1 else [])
        record |= finite(summarise_tokens(table) | summarise_rollouts(result.rollouts, table, rows))
        record["perf/eval_s"] = time.monotonic() - started
        self.evaluated[self.step] = record
        if self.step == 0:
            self.first_evaluation = record
        write_questions(result, self.run.path / "eval" / f"step-{self.step}.jsonl")
        self.run.write_lines(f"rollouts/step-{self.step}.jsonl", scores)
        self.log(record)
        self.keep_best(record)
        return record

    @torch.no_grad()
    def measure(
        self, rollouts: Sequence[Rollout]
    ) -> tuple[TokenTable, Tensor, list[dict[str, Any]]]:
        """Agreement on given rollouts, and the token-level scores of the first few."""
        tables, rows = list[TokenTable](), list[Tensor]()
        for start in range(0, len(rollouts), self.config.optimizer.micro_batch_size):
            part = rollouts[start : start + self.config.optimizer.micro_batch_size]
            batch = collate(part)
            student, teacher = self.student.score(batch), self.teacher.score(batch)
            table = token_statistics(student, teacher, batch.targets.to(student.device), self.k)
            table |= stop_masses(
                student, teacher, batch.rows, self.student.stop_ids | self.teacher.stop_ids
            )
            tables.append({key: value.cpu() for key, value in table.items()})
            rows.append(batch.rows + start)
        table, all_rows = concatenate(tables), torch.cat(rows)
        samples = self.config.evaluation.samples
        # One rollout each of questions spread over the held-out set, the same at every evaluation.
        questions = len(rollouts) // samples
        count = min(questions, self.config.run.record_rollouts)
        shown = [i * questions // count * samples for i in range(count)]
        scores = [_token_scores(rollouts[i], self.student, table, all_rows == i) for i in shown]
        return table, all_rows, scores

    # --- keeping -----------------------------------------------------------------------------

    def keep_best(self, record: Record) -> None:
        """Remember the best evaluation, and save its weights."""
        key = "accuracy" if self.metric == "accuracy" else "kl/reverse"
        value = record.get(key)
        if value is None:
            return
        score = float(value) if key == "accuracy" else -float(value)
        if score > self.best_value:
            self.best_step, self.best_value, self.evaluations_since_best = self.step, score, 0
            if self.step:
                self.save()
        else:
            self.evaluations_since_best += 1

    def save(self) -> Path:
        """A checkpoint of the whole state at this step."""
        state = {
            "best_step": self.best_step,
            "best_value": self.best_value if math.isfinite(self.best_value) else None,
            "evaluations_since_best": self.evaluations_since_best,
            "seconds": self.seconds(),
            "warned": sorted(self.warned),
        }
        path = save_checkpoint(
            self.run.checkpoints,
            self.step,
            self.student.model,
            self.student.tokenizer,
            self.optimizer,
            state,
        )
        prune(self.run.checkpoints, self.config.run.keep, protected=[self.best_step])
        replace_text(self.run.checkpoints / "best.json", to_json({"step": self.best_step}))
        return path

    def restore(self, checkpoint: Checkpoint, skipped: Sequence[str]) -> None:
        """Continue as if the run had never stopped."""
        restore_optimizer(checkpoint, self.optimizer)
        state = checkpoint.state
        self.step = self.student.policy_step = checkpoint.step
        self.best_step = state["best_step"]
        self.best_value = -math.inf if state["best_value"] is None else state["best_value"]
        self.evaluations_since_best = state["evaluations_since_best"]
        self.seconds_before = state["seconds"]
        self.warned = set(state["warned"])
        dropped = self.run.truncate_after(self.step)
        records = list(read_lines(self.run.metrics)) if self.run.metrics.exists() else []
        self.records = [record for record in records if record["kind"] == "train"]
        self.evaluated = {r["step"]: r for r in records if r["kind"] == "eval"}
        self.first_evaluation = self.evaluated.get(0, {})
        self.run.log_event("resume", step=self.step, skipped=list(skipped), dropped=dropped)

    def log(self, record: Record) -> None:
        """Record a step or an evaluation, and show it."""
        self.run.log_metrics(record)
        if record["kind"] == "train":
            self.records.append(record)
        self.observer(record)

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every > 0 and self.step % every == 0

    def stalled(self) -> bool:
        """Whether evaluations stopped improving."""
        patience = self.config.evaluation.patience
        return patience > 0 and self.evaluations_since_best >= patience

    def seconds(self) -> float:
        """Time spent on the run, over all its sittings."""
        return self.seconds_before + time.monotonic() - self.started

    def out_of_time(self) -> bool:
        """Whether the run's time is spent."""
        hours = self.config.run.max_hours
        return hours is not None and self.seconds() >= 3600 * hours


class Timings:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, phase: str) -> "_Phase":
        """Add what runs inside to a phase."""
        return _Phase(self.seconds, phase)

    def record(self, tokens: int, padding: float) -> Record:
        """perf/* of a step that scored `tokens` tokens."""
        record: Record = {f"perf/{phase}_s": s for phase, s in self.seconds.items()}
        record["perf/step_s"] = sum(self.seconds.values())
        for phase in ("rollout", "score", "update"):
            if self.seconds.get(phase):
                record[f"perf/{phase}_tokens_per_s"] = tokens / self.seconds[phase]
        record["perf/padding"] = padding
        # ru_maxrss is in kilobytes on Linux and in bytes on macOS.
        scale = 1 if sys.platform == "darwin" else 1024
        record["perf/peak_memory_bytes"] = (
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
        )
        return record


class _Phase:
    def __init__(self, seconds: dict[str, float], phase: str) -> None:
        self.seconds, self.phase = seconds, phase

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        passed = time.perf_counter() - self.started
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + passed


def learning_rate(settings: OptimizerConfig, step: int, steps: int) -> float:
    """The learning rate of step `step` (from 0) of `steps`."""
    warm_up = settings.warmup_steps
    if step < warm_up:
        return settings.lr * (step + 1) / warm_up
    if settings.schedule == "constant":
        return settings.lr
    done = (step - warm_up) / max(1, steps - warm_up)
    return settings.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * done)))


def begin_run(run: Run, config: Config, *, overwrite: bool = False) -> None:
    """Make the run directory, with the resolved settings and the versions in it."""
    create_run(run.path, overwrite=overwrite)
    replace_text(run.path / "config.yaml", dump_config(config))
    replace_text(run.path / "environment.json", to_json(environment()))


def reopen_run(config: Config) -> Run:
    """The run to resume.

    Raises:
        UsageError: there is none, or its settings were others.

    """
    run = open_run(config.run.dir)
    changes = _changes(run, config)
    if changes:
        raise UsageError(
            "--resume continues a run with the settings it began with, but "
            + "; ".join(changes)
            + f". Only {', '.join(sorted(CHANGEABLE_ON_RESUME))} may change"
        )
    return run


def _changes(run: Run, config: Config) -> list[str]:
    import yaml

    before = _leaves(
        parse_config(yaml.safe_load((run.path / "config.yaml").read_text())).model_dump(mode="json")
    )
    now = _leaves(config.model_dump(mode="json"))
    return [
        f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in CHANGEABLE_ON_RESUME
    ]


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves |= _leaves(value, f"{prefix}{key}.")
        else:
            leaves[prefix + key] = value
    return leaves


def _data(config: Config) -> tuple[list[Any], list[Any], Verify | None]:
    prompts = load_prompts(config.data.prompts)
    if config.data.eval_prompts is not None:
        held_out = load_prompts(config.data.eval_prompts)
        prompts = without(prompts, held_out)
    else:
        prompts, held_out = split_held_out(prompts, config.data.held_out)
    return prompts, held_out, choose_verifier(config.data, [*prompts, *held_out])


def _require_prompts(config: Config, prompts: Sequence[RenderedPrompt], too_long: int) -> None:
    needed = config.rollout.prompts_per_step
    if len(prompts) < needed:
        dropped = f" ({too_long} were longer than data.max_prompt_tokens)" if too_long else ""
        raise DataError(
            f"{config.data.prompts} leaves {len(prompts)} training prompts{dropped}, but one step "
            f"takes {needed}; lower rollout.prompts_per_step or data.held_out, or add prompts"
        )


def _sampling(config: Config) -> SamplingParams:
    rollout = config.rollout
    return SamplingParams(
        max_new_tokens=rollout.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
    )


def _length(rollout: Rollout) -> int:
    return len(rollout.prompt_ids) + len(rollout.completion_ids)


def _token_scores(
    rollout: Rollout, model: LocalModel, table: TokenTable, mine: Tensor
) -> dict[str, Any]:
    columns = {
        key: [None if math.isnan(v) else round(v, 5) for v in values[mine].tolist()]
        for key, values in table.items()
    }
    return {
        "id": rollout.prompt.id,
        "index": rollout.index,
        "policy_step": rollout.policy_step,
        "question": rollout.prompt.question,
        "answer": rollout.prompt.answer,
        "text": rollout.text,
        "reward": rollout.reward,
        "finish_reason": rollout.finish_reason,
        "prompt_ids": list(rollout.prompt_ids),
        "completion_ids": list(rollout.completion_ids),
        "tokens": model.tokens(rollout.completion_ids),
        "scores": columns,
    }
