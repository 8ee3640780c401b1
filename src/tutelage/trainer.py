"""The state of a run, and the stages of its step."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from tutelage import signals
from tutelage.alignment.guidance import Guidance
from tutelage.config import (
    FSDP2,
    AnnealSchedule,
    Config,
    FixedAdvantage,
    PassRatePrompt,
    RetireSchedule,
    TeacherGatePrompt,
    UniformPrompt,
    dump_config,
)
from tutelage.credit import gate_weights, pass_rate_weights
from tutelage.data.verify import judge
from tutelage.errors import GuardStop, ServerError
from tutelage.evaluation import teacher_pass_rates, write_questions
from tutelage.examination import Examiner, examine
from tutelage.gradient import Models, StepGradient, accumulate, measure, move_of_policy
from tutelage.keeping import Keeper, anew, go_on
from tutelage.metrics import (
    Record,
    TokenTable,
    horizon_of,
    overlap_k,
    summarise_positions,
    summarise_rollouts,
    summarise_tokens,
)
from tutelage.models.memory import halve_until_it_fits, whole_or_told
from tutelage.models.mixture import draw_rollouts
from tutelage.models.served.student import ServedStudent
from tutelage.models.sharded import is_sharded, shard
from tutelage.optimizing import learning_rate, make_optimizer, take_step
from tutelage.ranks import ALONE, Ranks
from tutelage.ranks.beginning import require_shared
from tutelage.ranks.sharing import gather_rollouts, whole, whole_table
from tutelage.ranks.stopping import abandoning, hear, told_full_memory
from tutelage.runs.checkpoints import Checkpoint
from tutelage.runs.directory import Run, environment, finite
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.records import metric_records
from tutelage.runs.rollouts import rollout_from_json, rollout_to_json
from tutelage.session import Session
from tutelage.signals.history import History
from tutelage.signals.ranking import warnings
from tutelage.timings import Timings, performance
from tutelage.token_records import LikelyTokens, keep_not_applied
from tutelage.types import RenderedPrompt, Rollout, TokenScores

Observer = Callable[[Record], None]
T = TypeVar("T")
# One rollout in so many tells how far a step moved the policy, at least four of them.
MOVE_EVERY = 16


class Trainer:
    """Everything a run knows; `training.py` tells in which order the stages follow."""

    def __init__(
        self,
        config: Config,
        run: Run,
        session: Session,
        observer: Observer,
        interrupts: Interrupts | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config, self.run, self.observer = config, run, observer
        self.interrupts = interrupts or Interrupts()
        self.ranks = ranks
        self.models, self.session = session.models, session
        if isinstance(config.distributed, FSDP2):
            shard(self.models.student)
        self.optimizer = make_optimizer(self.models.student, config.optimizer)
        self.overlap_k = overlap_k(config.run.metrics_k, self.models.student.vocabulary)
        self.keeper = Keeper(config, run, session, self.optimizer, ranks)
        self.step = self.sitting_began_at = 0
        self.micro_batch_size = config.optimizer.micro_batch_size
        self.timings, self.drawn = Timings(), 0
        self.started = time.monotonic()
        self.steps: list[Record] = []
        self.evaluations: dict[int, Record] = {}
        self.teacher_accuracy: float | None = None
        self.warned: set[str] = set()
        self.pending: list[list[Rollout]] = []
        self.guidance = Guidance(config, session)
        self.examiner = Examiner(config, session, ranks)
        self.told_full = False

    def begin(self) -> None:
        """Write down what a run begins with; records of an earlier beginning go."""
        self.write_settings()
        self.run.write_json("environment.json", environment())
        self.run.write_json("data.json", self.session.digests())
        require_shared(self.ranks, self.run.path / "config.yaml")
        self.run.cut_torn_lines()
        self.run.truncate_after(-1)
        for note in self.session.notes:
            self.run.log_event(**note)
        self.tell_notes()

    def write_settings(self) -> None:
        """The settings the run goes on with, and what its servers said of themselves."""
        self.run.write_text("config.yaml", dump_config(self.config))
        if self.session.servers:
            self.run.write_json("servers.json", self.session.servers_record())

    def tell_notes(self) -> None:
        """Show what was noticed when models and prompts were put together."""
        for note in self.session.notes:
            self.observer({**note, "kind": "note"})

    def abandoning(self, *, at_once: bool = True) -> AbstractContextManager[None]:
        """Work that may be thrown away, on all ranks."""
        return abandoning(self.ranks, self.interrupts, at_once=at_once)

    # --- the stages of a step ----------------------------------------------------------------

    def next_rollouts(self) -> list[Rollout]:
        """The rollouts to train on, sampled now or some steps ago; pending until they were."""
        self.timings, self.drawn = Timings(), 0
        while len(self.pending) <= self.config.rollout.delay_steps:
            first = self.step + len(self.pending)
            steps = self.generation(first)
            with self.abandoning():
                rollouts = self.sample([prompt for step in steps for prompt in step], first)
            self.drawn += sum(len(rollout.completion_ids) for rollout in rollouts)
            size = len(rollouts) // len(steps)
            self.pending += [rollouts[i : i + size] for i in range(0, len(rollouts), size)]
        return self.pending[0]

    def generation(self, first: int) -> list[list[RenderedPrompt]]:
        """The prompts of the steps that are sampled together, from step `first` on.

        They are of one epoch, so that no prompt is among them twice.
        """
        prompts, since, _ = self.guidance.prompts(first)
        of_epoch = len(prompts) // self.config.rollout.prompts_per_step
        count = min(self.config.rollout.steps_per_generation, of_epoch - since % of_epoch)
        return [self.prompts_of(step) for step in range(first, first + count)]

    def prompts_of(self, step: int) -> list[RenderedPrompt]:
        """The prompts of a step: every epoch walks them all in an order of its own."""
        prompts, since, key = self.guidance.prompts(step)
        count = self.config.rollout.prompts_per_step
        epoch, place = divmod(since, len(prompts) // count)
        rng = np.random.default_rng([self.config.run.seed, epoch, *key])
        order = rng.permutation(len(prompts))
        return [prompts[i] for i in order[place * count : (place + 1) * count]]

    def sample(self, prompts: Sequence[RenderedPrompt], step: int) -> list[Rollout]:
        """Judged rollouts at the current weights, by the student or in part by its teacher.

        Each rank draws those of its share of the prompts.
        """
        settings = self.config.rollout.at(self.step)
        with self.timings("rollout"), whole(self.models.student, self.ranks):
            rollouts = draw_rollouts(
                self.session.sampler,
                self.models.teacher,
                self.ranks.deal(prompts),
                settings,
                seed=self.config.run.seed,
                step=step,
            )
        if (verify := self.session.verify) is not None and settings == self.config.rollout:
            with self.timings("verify"):
                rollouts = judge(rollouts, verify)
        with self.timings("exchange"):
            known = {prompt.prompt.id: prompt.prompt for prompt in prompts}
            rollouts = gather_rollouts(self.ranks, rollouts, settings.group_size, known)
        return rollouts if verify is None else self.session.show_siblings(rollouts)

    def update(self, rollouts: Sequence[Rollout]) -> None:
        """One optimizer step on all rollouts, and its record."""
        lr = learning_rate(self.config.optimizer, self.step, self.config.run.steps)
        result = self.gradient(rollouts)
        norm, applied = self.take_step(result, lr)
        moved = self.move(rollouts, result) if applied else None
        self.step += 1
        self.pending = self.pending[1:]
        self.models.student.policy_step = self.step
        told = finite({"loss": result.loss, "grad_norm": norm, "update/kl": moved})
        if not applied:
            keep_not_applied(
                self.run,
                self.step,
                rollouts,
                result.table,
                result.rows,
                self.models.student.tokenizer,
                told,
            )
        self.record(rollouts, result, {"applied": applied, "lr": lr, **told})

    def gradient(self, rollouts: Sequence[Rollout]) -> StepGradient:
        """The gradient of the whole step, which all ranks share."""
        settings, student = self.config.optimizer, self.models.student
        control = self.config.control
        with self.abandoning(at_once=not is_sharded(student)):
            weights, share = self.prompt_weights(rollouts), self.teacher_share()
            result = self.in_parts(
                lambda size: accumulate(
                    self.models,
                    self.config.objective,
                    rollouts,
                    micro_batch_size=size,
                    aggregation=settings.aggregation,
                    overlap_k=self.overlap_k,
                    prompt_weights=weights,
                    teacher_share=share,
                    fixed_advantage=control.advantage
                    if isinstance(control, FixedAdvantage)
                    else None,
                    timings=self.timings,
                    ranks=self.ranks,
                ),
                len(rollouts),
            )
        if not is_sharded(student):  # those of sharded weights are summed as they come
            with self.timings("exchange"):
                self.ranks.sum_gradients(student.model.parameters())
        return result

    def take_step(self, result: StepGradient, lr: float) -> tuple[float, bool]:
        """Move the weights along a gradient; its norm, and whether they moved."""
        student, average = self.models.student, self.session.average
        with self.timings("optimizer"):
            norm, applied = take_step(
                self.optimizer,
                student,
                result.loss,
                lr=lr,
                grad_clip=self.config.optimizer.grad_clip,
                usable=not bool(result.table["teacher_logprob"].isnan().any()),
            )
            if applied and average is not None:
                average.follow(student)
        return norm, applied

    def record(self, rollouts: Sequence[Rollout], result: StepGradient, told: Record) -> None:
        """A line of metrics.jsonl for the step just taken, and one by position."""
        record: Record = {"kind": "train", "step": self.step, **told}
        record |= finite(summarise_tokens(result.table))
        longest = self.config.rollout.max_new_tokens
        if (horizon := horizon_of(rollouts, longest)) is None:
            record |= finite(summarise_rollouts(rollouts, result.table, result.rows))
        else:  # how long answers are, and how they end, is not seen
            record |= {"rollout/count": len(rollouts), "rollout/horizon": horizon}
        record["rollout/age"] = fmean(self.step - 1 - r.policy_step for r in rollouts)
        record |= self.session.contexts_missing(rollouts)
        record |= performance(
            self.timings, drawn=self.drawn, scored=record["tokens"], padding=result.padding
        )
        self.log(record)
        series = {
            key: finite(part) if isinstance(part, dict) else part
            for key, part in summarise_positions(result.table, result.positions, longest).items()
        }
        self.run.append(self.run.path / "positions.jsonl", {"step": self.step, **series})

    def in_parts(self, work: Callable[[int], T], rollouts: int) -> T:
        """`work(micro-batch size)`; memory that does not hold it halves the size for good."""

        def told(size: int, reason: str) -> None:
            self.optimizer.zero_grad(set_to_none=True)
            self.micro_batch_size = size
            text = f"memory was full ({reason}), so {size} rollouts go through the models at once"
            self.run.log_event("out_of_memory", step=self.step, micro_batch_size=size, text=text)
            self.observer({"kind": "note", "text": text})

        advice = (
            "Lower rollout.max_new_tokens, set student.gradient_checkpointing, or train LoRA "
            "(student.lora)"
        )
        student, most = self.models.student, -(-rollouts // self.ranks.size)
        if is_sharded(student) and not student.gatherings:
            return whole_or_told(work, min(self.micro_batch_size, most))
        work = told_full_memory(self.ranks, work)
        return halve_until_it_fits(work, min(self.micro_batch_size, most), told, advice)

    def move(self, rollouts: Sequence[Rollout], result: StepGradient) -> float:
        """How far the step just taken moved the policy, in nats a token."""
        size = self.ranks.size
        count = max(min(4, len(rollouts)), len(rollouts) // MOVE_EVERY)
        # As many on every rank, since each of them runs the same layers.
        count = -(-min(count, self.micro_batch_size * size) // size) * size
        chosen = self.ranks.deal([i * len(rollouts) // count for i in range(count)])
        before = [result.table["student_logprob"][result.rows == i] for i in chosen]
        with self.timings("move"):
            moves = move_of_policy(
                self.models.student, [rollouts[i] for i in chosen], torch.cat(before)
            )
            everyone = self.ranks.gather_tensors({"moves": moves})
        return float(torch.cat([tokens["moves"] for tokens in everyone]).mean())

    def prompt_weights(self, rollouts: Sequence[Rollout]) -> Tensor | None:
        """Weight of each rollout's prompt; None where all count the same."""
        match self.config.objective.prompt_weight:
            case UniformPrompt():
                return None
            case PassRatePrompt():
                return pass_rate_weights(rollouts)
            case TeacherGatePrompt(samples=samples, threshold=threshold):
                prompts = self.ranks.deal(list(dict.fromkeys(r.prompt.id for r in rollouts)))
                with self.timings("teacher_gate"), whole(self.models.student, self.ranks):
                    own = teacher_pass_rates(
                        self.models.teacher,
                        [r for r in rollouts if r.prompt.id in set(prompts)],
                        self.session.verify,
                        self.config.rollout,
                        samples=samples,
                        seed=self.config.run.seed,
                        step=self.step,
                    )
                rates = {k: v for part in self.ranks.gather_json(own) for k, v in part.items()}
                return gate_weights(rollouts, rates, threshold)

    def teacher_share(self) -> float:
        """What the reward's schedule and the probes leave of the teacher's term at this step."""
        return self.guidance.weight * self.scheduled_share()

    def scheduled_share(self) -> float:
        """What the reward's schedule leaves of the teacher's term at this step."""
        reward = self.config.objective.reward
        match reward.schedule if reward is not None else None:
            case AnnealSchedule(start=start, end=end):
                return 1 - min(1.0, max(0.0, (self.step - start) / (end - start)))
            case RetireSchedule(fraction=fraction, patience=patience):
                if self.teacher_accuracy is None:
                    self.teacher_accuracy = self.examiner.teacher_accuracy()
                done = signals.retired(
                    list(self.evaluations.values()), self.teacher_accuracy, fraction, patience
                )
                return 0.0 if done else 1.0
            case _:
                return 1.0

    def watch(self) -> None:
        """Guards on what was recorded; a warning is given once.

        Raises:
            GuardStop: a guard that ends the run.
        """
        guards = self.config.guards
        noticed = [
            signals.non_finite(self.steps, guards.non_finite_limit),
            signals.truncation(self.steps, guards.truncated, guards.window),
            signals.length(self.steps, guards.length_factor, guards.window),
            signals.drift(self.steps, guards.drift),
        ]
        # The rules read every step so far, so the longer a run, the rarer they are asked.
        if guards.causes and self.due(guards.window * (1 + self.step // 500)):
            noticed += warnings(self.history())
        for signal in noticed:
            if signal is None:
                continue
            named = guards.stop if isinstance(guards.stop, bool) else signal.name in guards.stop
            stop = signal.severity == "stop" or named
            if stop or signal.name not in self.warned:
                self.warned.add(signal.name)
                told = {
                    "step": self.step,
                    "name": signal.name,
                    "evidence": signal.evidence,
                    "advice": signal.advice,
                }
                self.run.log_event("signal", **told, severity="stop" if stop else "warning")
                self.observer({"kind": "signal", **told})
            if stop:
                if self.applied:
                    self.save()
                why = f"{signal.name}: {signal.evidence}. To mend it: {signal.advice}"
                raise GuardStop(f"{why}. {anew(self.run)}")

    def history(self) -> History:
        """What was recorded so far, as the rules of `explain` read it."""
        return History(
            config=self.config,
            steps=self.steps,
            evaluations=list(self.evaluations.values()),
            noted={n["kind"]: n["text"].split("; ")[0] for n in self.session.notes},
            goes_on=True,
        )

    # --- evaluation --------------------------------------------------------------------------

    def evaluate(self) -> Record:
        """Held-out accuracy and agreement at this step; the best checkpoint is kept."""
        if not self.session.held_out:
            return {}
        if self.step in self.evaluations:
            return self.evaluations[self.step]
        started = time.monotonic()
        with self.abandoning():
            found = examine(self.examiner, self.models, self.measure, with_teacher=self.step == 0)
        record: Record = {"kind": "eval", "step": self.step, **found.record}
        record["perf/eval_s"] = time.monotonic() - started
        self.evaluations[self.step] = record
        if self.run.writes:
            write_questions(found.evaluation, self.run.path / "eval" / f"step-{self.step}.jsonl")
        self.run.write_lines(f"rollouts/step-{self.step}.jsonl", found.tokens)
        for event in found.events:
            self.run.log_event(**event)
            self.observer({**event, "kind": "note"})
        self.log(record)
        if self.keeper.hear(self.step, record, self.applied):
            self.save()
        return record

    def measure(
        self, models: Models, rollouts: Sequence[Rollout], likely: LikelyTokens | None = None
    ) -> tuple[TokenTable, Tensor]:
        """Per-token metrics of rollouts, and which rollout each token is of.

        Each rank measures its share, and all know the whole.
        """
        places = torch.tensor(self.ranks.deal(range(len(rollouts))), dtype=torch.long)
        own = self.ranks.deal(rollouts)

        def look(rows: Tensor, student: Tensor, teacher: Tensor | TokenScores) -> None:
            assert likely is not None
            likely.look(places[rows], student, teacher)

        def work(size: int) -> tuple[TokenTable, Tensor]:
            if likely is not None:
                likely.forget()  # what a larger size saw before memory was full
            table, rows = measure(
                models,
                own,
                micro_batch_size=size,
                overlap_k=self.overlap_k,
                look=None if likely is None else look,
            )
            return whole_table(self.ranks, table, places[rows])

        with whole(self.models.student, self.ranks):
            return self.in_parts(work, len(rollouts))

    # --- probing -----------------------------------------------------------------------------

    def probe_teacher(self) -> str | None:
        """A small alignment where one is due; the signal that ends the run, if its policy says so.

        Asked again at the same step, after a resume, it answers alike.
        """
        guidance = self.guidance
        if guidance.is_due(self.step):
            started = time.monotonic()
            with self.abandoning(), whole(self.models.student, self.ranks):
                record, found = guidance.ask(self.step)
            signal, done = guidance.decide(record, found)
            record["perf/probe_s"] = time.monotonic() - started
            self.log(record)
            self.models = replace(self.models, teacher=guidance.teacher)
            if signal is not None:
                told = {"step": self.step, "name": signal.name, "evidence": signal.evidence}
                told["advice"] = f"went on with {done}" if done else signal.advice
                self.run.log_event("signal", **told, severity="warning")
                self.observer({"kind": "signal", **told})
            elif done:
                self.run.log_event("probe", step=self.step, text=f"went on with {done}")
                self.observer({"kind": "note", "text": f"step {self.step}: went on with {done}"})
        return guidance.ends(self.step)

    # --- keeping -----------------------------------------------------------------------------

    @property
    def applied(self) -> bool:
        """Whether the last step moved the weights."""
        return not self.steps or bool(self.steps[-1].get("applied", True))

    def save(self) -> None:
        """A checkpoint of the whole state at this step, unless it has one.

        Raises:
            GuardStop: the weights are not finite; older checkpoints are worth more.
            MachineError: the disk has no room for it.
        """
        state = {
            "warned": sorted(self.warned),
            "micro_batch_size": self.micro_batch_size,
            "pending": [[rollout_to_json(r) for r in step] for step in self.pending],
        }
        self.keeper.save(self.step, state)

    def restore(self, checkpoint: Checkpoint, skipped: Mapping[str, str]) -> None:
        """Continue as if the run had never stopped."""
        self.keeper.restore(checkpoint, skipped)
        self.run.cut_torn_lines()
        state = checkpoint.state
        self.step = self.sitting_began_at = self.models.student.policy_step = checkpoint.step
        self.micro_batch_size = state["micro_batch_size"]
        self.warned = set(state["warned"])
        prompts = {p.prompt.id: p.prompt for p in self.session.prompts}
        self.pending = [[rollout_from_json(r, prompts) for r in step] for step in state["pending"]]
        self.run.truncate_after(self.step)
        self.ranks.exchange()  # the others read what the first one has cut
        records = metric_records(self.run.metrics) if self.run.metrics.exists() else []
        self.steps = [record for record in records if record["kind"] == "train"]
        self.evaluations = {r["step"]: r for r in records if r["kind"] == "eval"}
        applied = {r["step"]: bool(r.get("applied", True)) for r in self.steps}
        self.keeper.recall(self.evaluations, applied)
        self.guidance.records = [record for record in records if record["kind"] == "probe"]
        self.models = replace(self.models, teacher=self.guidance.teacher)

    def heed(self) -> None:
        """Save and end, if a signal asked for it.

        Raises:
            Preempted: it did.
        """
        if hear(self.ranks, self.interrupts):
            self.optimizer.zero_grad(set_to_none=True)  # of a step that was abandoned
            self.save()
            self.interrupts.heed(f" at step {self.step}, state saved; {go_on(self.run)}")

    def log(self, record: Record) -> None:
        """Record a step or an evaluation, and show it."""
        record |= self.server_record()
        self.run.log_metrics(record)
        if self.run.waiting and not self.told_full:
            text = (
                f"the disk of {self.run.path} is full; records wait in memory until the next save"
            )
            self.observer({"kind": "note", "text": text})
        self.told_full = bool(self.run.waiting)
        if record["kind"] == "train":
            self.steps.append(record)
        elif record["kind"] == "probe":
            self.guidance.records.append(record)
        self.observer(record)

    def note_server_failure(self, error: ServerError) -> None:
        """Keep what ended the run, and the tries before it."""
        self.server_record()
        self.run.log_event("server_failed", step=self.step, text=str(error))

    def server_record(self) -> Record:
        """What the servers needed since the last record; faults that passed are events."""
        record: Record = {}
        for role, server in self.session.servers.items():
            faults = server.take_retried()
            record[f"server/{role}_retries"] = len(faults)
            for fault in faults:
                self.run.log_event("server_retry", step=self.step, role=role, fault=fault)
            if faults:
                text = f"the {role}'s server was asked again {len(faults)} times ({faults[0]})"
                self.observer({"kind": "note", "text": text})
            for text in server.take_events():
                self.run.log_event("server_balance", step=self.step, role=role, text=text)
                self.observer({"kind": "note", "text": text})
        if isinstance(self.session.sampler, ServedStudent):
            record |= self.session.sampler.record()
        return record

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now."""
        return every > 0 and self.step > 0 and self.step % every == 0

    def evaluation_is_due(self) -> bool:
        """Whether this step is evaluated; the first and the last always are."""
        return self.step in (0, self.config.run.steps) or self.due(self.config.evaluation.every)

    def over(self) -> str | None:
        """Why no further step is taken, if none is."""
        if self.step >= self.config.run.steps:
            return "finished"
        if self.stalled():
            return "early_stop"
        return "time_limit" if self.out_of_time() else None

    def stalled(self) -> bool:
        """Whether evaluations stopped improving."""
        patience = self.config.evaluation.patience
        return patience > 0 and self.keeper.standing.since_best >= patience

    def out_of_time(self) -> bool:
        """Whether the time of this sitting, which takes one step at least, is spent."""
        hours = self.config.run.max_hours
        spent = time.monotonic() - self.started
        if hours is None or self.step == self.sitting_began_at:
            return False
        return self.ranks.decide(lambda: spent >= 3600 * hours)
