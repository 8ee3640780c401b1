"""A profile of this machine with the two models of a run, in a few seconds.

The parts of a step are run on rollouts of several numbers and lengths, and each part's rates
are those, none negative, that explain its seconds best (least squares of relative errors).
"""

import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from scipy.optimize import nnls

from tutelage.config import Config
from tutelage.data.verify import judge
from tutelage.gradient import accumulate, move_of_policy
from tutelage.metrics import overlap_k, summarise_positions, summarise_rollouts, summarise_tokens
from tutelage.models.local import LocalModel
from tutelage.models.served.answers import scores_of
from tutelage.optimizing import make_optimizer, take_step
from tutelage.ranks import ALONE, Ranks
from tutelage.ranks.joining import joined, place_in_launch
from tutelage.runs.directory import Run, finite
from tutelage.runs.interrupts import Interrupts
from tutelage.runs.rollouts import pack_rollouts, unpack_rollouts
from tutelage.session import Session, prepare
from tutelage.sizing.cost import Rate, Speeds
from tutelage.sizing.lengths import known_decoding, observed
from tutelage.sizing.linking import measure_link
from tutelage.sizing.profiles import Measured
from tutelage.timings import Timings
from tutelage.types import Rollout, SamplingParams

_TIMES = 3  # that each part is run; the median counts
_LENGTHS = 192  # rollouts by which lengths are known; most that are decoded at once
_ANSWER = (64, 16)  # tokens and log-probabilities of the answer that is read


def measure_profile(config: Config, ranks: Ranks = ALONE) -> Measured:
    """Rates of the student and a teacher in this process; loads both.

    With one thread, seconds are those of the processor, so other work on the machine counts
    little; with more threads or an accelerator they are the clock's. Several ranks measure side
    by side, as they will train, and what lies between them besides; the first one's rates count.

    Raises:
        TutelageError: what `prepare` refuses.
    """
    session = prepare(config)
    bench = _Bench(config, session, ranks)
    started = time.monotonic()
    bench.warm_up()
    prefill, decode, lengths = bench.sampling()
    teacher, student, head, look = bench.passes()
    optimizer = bench.optimizer()
    record, rollout_s = bench.records()
    link = measure_link(ranks, bench.work, bench.clock) if ranks.size > 1 else None
    return Measured(
        name=_machine(session.models.student),
        device=session.models.student.device.type,
        student=config.student.path,
        teacher=config.teacher_model.path,
        speeds=Speeds(
            prefill=prefill,
            decode=decode,
            teacher=teacher,
            student=student,
            head=head,
            look=look,
            optimizer=optimizer,
            record=record,
            rollout_s=rollout_s,
            answer_s=_answer_s(),
            disk_byte_s=bench.disk_byte_s(),
        ),
        lengths=observed(lengths, config.rollout.max_new_tokens),
        prompt_tokens=fmean(len(p.ids) for p in session.prompts),
        link=link,
        seconds=time.monotonic() - started,
    )


def measure_as_placed(config: Config) -> tuple[Measured, bool]:
    """The profile, of all ranks where a launcher started some, and whether this is the first.

    Raises:
        TutelageError: what `prepare` refuses; a rank that is lost.
    """
    if place_in_launch() is None:
        return measure_profile(config), True
    with Interrupts() as interrupts, joined(config.distributed, interrupts) as (ranks, _):
        return measure_profile(config, ranks), ranks.first


@dataclass
class _Bench:
    config: Config
    session: Session
    ranks: Ranks

    def __post_init__(self) -> None:
        models = self.session.models
        self.student, self.teacher = models.student, models.teacher
        self.clock = _clock(self.student)
        self.prompts = list(self.session.prompts)
        limit = self.config.rollout.max_new_tokens
        self.params = SamplingParams(
            max_new_tokens=limit, temperature=self.config.rollout.temperature
        )
        self.rng = np.random.default_rng(0)
        self.k = overlap_k(self.config.run.metrics_k, self.student.vocabulary)

    def warm_up(self) -> None:
        """What runs for the first time takes longer."""
        self.student.draw([(p, 0) for p in self.prompts[:4]], self.params, 0, 0)
        self._accumulated(self._rollouts(4, 8, 8))

    def work(self) -> None:
        """A little of all that a step does, for some tenths of a second at most."""
        few = replace(self.params, max_new_tokens=min(16, self.params.max_new_tokens))
        self.student.draw([(p, 0) for p in self.prompts[:16]], few, 0, 0)
        self._accumulated(self._rollouts(8, 8, few.max_new_tokens))

    def sampling(self) -> tuple[Rate, Rate, list[int]]:
        """Rates of reading prompts and of decoding steps; lengths of what was drawn."""
        self.ranks.exchange()
        lengths: list[int] = []
        reading, decoding = [], []
        one = SamplingParams(max_new_tokens=1, temperature=self.params.temperature)
        most = min(self.config.rollout.batch_size, _LENGTHS)
        for count in sorted({max(1, most // 16), most // 4 or 1, most}):
            prompts = [self.prompts[i % len(self.prompts)] for i in range(count)]
            unique = len({p.ids for p in prompts})
            width = max(len(p.ids) for p in prompts)
            draws = [(p, i) for i, p in enumerate(prompts)]
            first = self._usual(partial(self.student.draw, draws, one, 0, 0))
            reading.append(((1, unique * width, unique * width**2), first))
            for limit in (self.params.max_new_tokens, max(2, self.params.max_new_tokens // 3)):
                params = replace(self.params, max_new_tokens=limit)
                drawn: list[Rollout] = []

                def draw(d: Any = draws, p: Any = params, out: Any = drawn) -> None:
                    out[:] = self.student.draw(d, p, 0, 1)

                seconds = self._usual(draw)
                found = [len(r.completion_ids) for r in drawn]
                if limit == self.params.max_new_tokens:
                    lengths += found
                todo = known_decoding(found, width)
                decoding.append(((todo.passes, todo.rows, todo.pairs), seconds - first))
        for start in range(len(lengths), _LENGTHS, most):
            draws = [(self.prompts[i % len(self.prompts)], i) for i in range(start, start + most)]
            drawn = self.student.draw(draws, self.params, 0, 2)
            lengths += [len(r.completion_ids) for r in drawn]
        return _rate(reading), _rate(decoding), lengths

    def passes(self) -> tuple[Rate, Rate, Rate, Rate]:
        """Rates of the teacher, of the student's layers both ways, of the sweep, of a look."""
        teaching, learning, looking = [], [], []
        room = self.student.context or 10**6
        long = min(self.params.max_new_tokens, room - 8)
        short = max(1, long // 3)
        prompt = min(max(4, round(fmean(len(p.ids) for p in self.prompts))), room - long)
        wide = min(4 * prompt, room - long)
        size = self.config.optimizer.micro_batch_size
        most = max(2, min(size, 32))
        shapes = [
            (most, prompt, long),
            (most, prompt, short),
            (most, wide, short),
            (max(1, most // 8), prompt, long),
            (max(1, most // 8), wide, short),
            (max(1, most // 2), wide, long),
        ]
        made = [self._rollouts(*shape) for shape in shapes]
        scoring, resting, looked = ([list[float]() for _ in shapes] for _ in range(3))
        self.ranks.exchange()
        for _ in range(_TIMES):
            # In turn, since memory is given back and asked for again as sizes change.
            for i, rollouts in enumerate(made):
                timings = _Clocked(self.clock)
                begin = self.clock()
                result = self._accumulated(rollouts, timings)
                scoring[i].append(timings.seconds["score"])
                resting[i].append(self.clock() - begin - timings.seconds["score"])
                begin = self.clock()
                move_of_policy(self.student, rollouts, result.table["student_logprob"])
                looked[i].append(self.clock() - begin)
        for i, (count, before, after) in enumerate(shapes):
            positions, pairs = count * (before + after), count * (before + after) ** 2
            teaching.append(((1, positions, pairs), median(scoring[i])))
            learning.append(((1, positions, pairs, count * after), median(resting[i])))
            looking.append(((1, positions, pairs), median(looked[i])))
        found = _fit(learning)
        self.student.model.zero_grad(set_to_none=True)
        student, head = Rate(found[0], found[1], found[2]), Rate(0.0, found[3])
        return _rate(teaching), student, head, _rate(looking)

    def optimizer(self) -> Rate:
        """Of a step, on a copy of nothing: moments are made and thrown away."""
        weights = [p for p in self.student.model.parameters() if p.requires_grad]
        kept = [w.detach().clone() for w in weights]
        optimizer = make_optimizer(self.student, self.config.optimizer)

        def step() -> None:
            for w in weights:
                w.grad = torch.full_like(w, 1e-3)
            take_step(optimizer, self.student, 0.0, lr=1e-12, grad_clip=1.0)

        step()
        seconds = self._usual(step)
        with torch.no_grad():
            for w, before in zip(weights, kept, strict=True):
                w.copy_(before)
        return Rate(0.0, seconds / sum(w.numel() for w in weights))

    def records(self) -> tuple[Rate, float]:
        """Of judging, statistics and records, and of a rollout's way to another rank."""
        told, seconds = [], []
        known = {p.prompt.id: p.prompt for p in self.prompts}
        long = min(self.params.max_new_tokens, (self.student.context or 10**6) - 8)
        for count in (4, 64):
            rollouts = self._rollouts(count, 8, long)
            result = self._accumulated(rollouts)

            def write(run: Run, rollouts: Any = rollouts, result: Any = result) -> None:
                if self.session.verify is not None:
                    judge(rollouts, self.session.verify)
                record = finite(summarise_tokens(result.table))
                record |= finite(summarise_rollouts(rollouts, result.table, result.rows))
                run.log_metrics(record)
                series = summarise_positions(result.table, result.positions, long)
                run.append(run.path / "positions.jsonl", series)

            tokens = count * long
            with tempfile.TemporaryDirectory() as folder:
                run = Run(Path(folder))
                told.append(((1, tokens, 0), self._usual(partial(write, run))))

            def pack(rollouts: Any = rollouts) -> None:
                unpack_rollouts(load(save(pack_rollouts(rollouts))), known)

            seconds.append(self._usual(pack) / tokens)
        self.student.model.zero_grad(set_to_none=True)
        return _rate(told), min(seconds)

    def disk_byte_s(self) -> float:
        """Of writing a file and reading it."""
        content = bytes(2**24)
        with tempfile.NamedTemporaryFile() as file:
            path = Path(file.name)
            return self._usual(lambda: (path.write_bytes(content), path.read_bytes())) / 2**25

    def _rollouts(self, count: int, before: int, after: int) -> list[Rollout]:
        """Rollouts of random tokens."""
        most = min(self.student.vocabulary, self.teacher.vocabulary)
        rollouts = []
        for i in range(count):
            ids = [int(t) for t in self.rng.integers(0, most, before + after)]
            rollouts.append(
                Rollout(
                    prompt=self.prompts[i % len(self.prompts)].prompt,
                    index=i,
                    prompt_ids=tuple(ids[:before]),
                    teacher_prompt_ids=None,
                    completion_ids=tuple(ids[before:]),
                    logprobs=(-1.0,) * after,
                    finish_reason="length",
                    text=self.student.decode_text(ids[before:]),
                    policy_step=0,
                )
            )
        return rollouts

    def _accumulated(self, rollouts: Sequence[Rollout], timings: Timings | None = None) -> Any:
        self.student.model.zero_grad(set_to_none=True)
        return accumulate(
            self.session.models,
            self.config.objective,
            rollouts,
            micro_batch_size=len(rollouts),
            aggregation=self.config.optimizer.aggregation,
            overlap_k=self.k,
            timings=timings,
        )

    def _usual(self, work: Callable[[], object]) -> float:
        times = []
        for _ in range(_TIMES):
            begin = self.clock()
            work()
            times.append(self.clock() - begin)
        return median(times)


class _Clocked(Timings):
    """Phases by another clock than the wall's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock

    def __call__(self, phase: str) -> Any:
        return _ClockedPhase(self, phase)


class _ClockedPhase:
    def __init__(self, timings: _Clocked, phase: str) -> None:
        self.timings, self.phase = timings, phase

    def __enter__(self) -> None:
        self.begin = self.timings.clock()

    def __exit__(self, *_: object) -> None:
        seconds = self.timings.seconds
        passed = self.timings.clock() - self.begin
        seconds[self.phase] = seconds.get(self.phase, 0.0) + passed


def _clock(student: LocalModel) -> Callable[[], float]:
    if student.device.type == "cuda":

        def waited() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return waited
    return time.process_time if torch.get_num_threads() == 1 else time.perf_counter


def _clocked(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _fit(rows: Sequence[tuple[Sequence[float], float]]) -> list[float]:
    """Rates, none negative, by which the work of each row takes its seconds."""
    work = np.array([row for row, _ in rows], dtype=float)
    seconds = np.array([max(s, 1e-9) for _, s in rows])
    scale = work.max(axis=0)
    scale[scale == 0] = 1.0
    found, _ = nnls(work / scale / seconds[:, None], np.ones(len(seconds)))
    return [float(rate) for rate in found / scale]


def _rate(rows: Sequence[tuple[Sequence[float], float]]) -> Rate:
    return Rate(*_fit(rows))


def _answer_s() -> float:
    """Of reading one log-probability of a server's answer."""
    tokens, listed = _ANSWER
    place = {
        str(i): {"logprob": -1.0 - i, "rank": i + 1, "decoded_token": "tok"} for i in range(listed)
    }
    text = json.dumps([None, *[place] * tokens])
    sequence = [0] * (tokens + 1)
    seconds = min(
        _clocked(lambda: scores_of(json.loads(text), sequence, listed, 1)) for _ in range(5)
    )
    return seconds / (tokens * listed)


def _machine(student: LocalModel) -> str:
    if student.device.type == "cuda":
        return torch.cuda.get_device_name(student.device)
    threads = torch.get_num_threads()
    name = _processor() or platform.machine()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else ""
