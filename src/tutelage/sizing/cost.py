"""The seconds of one training step, as a sum of closed forms.

Every term is work times a rate: how often a network runs, on how many tokens that look at how
many earlier ones. Rates are measured (`sizing/measuring.py`) or derived from what is known of
hardware (`sizing/datasheets.py`). What runs side by side on a machine is added here all the same,
so where work and transfer overlap the sum is an upper bound. docs/scaling.md has the formulas.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tutelage.sizing.lengths import Lengths, expected_decoding

# What a step of several ranks exchanges: messages, and bytes of a token (token table; id,
# log-probability and text of a rollout) and of a prompt's token, which each rollout brings.
MESSAGES = 8
TABLE_BYTES = 120
ROLLOUT_BYTES = 20
PROMPT_BYTES = 8
BUCKET = 2**24  # numbers of one all-reduce
# As gradient.py and models/prefixes.py have them: FLOPs that take as long as one pass more, and
# what leaving out copies of prompts must save.
PASS_FLOPS = {"cpu": 1.5e9}
PASS_FLOPS_ELSEWHERE = 4e12
SHARED_SHARE, SHARED_TOKENS = 0.25, 512
MOVE_EVERY = 16  # as trainer.py: one rollout in so many is read again after the step


@dataclass(frozen=True)
class Rate:
    """Seconds of running something: of each pass, token, and (token, earlier token)."""

    pass_s: float = 0.0
    token_s: float = 0.0
    pair_s: float = 0.0

    def seconds(self, passes: float, tokens: float, pairs: float = 0.0) -> float:
        """Seconds of that much work."""
        return self.pass_s * passes + self.token_s * tokens + self.pair_s * pairs


@dataclass(frozen=True)
class Link:
    """A connection between ranks."""

    latency_s: float
    """Seconds that an exchange of nothing adds to the work of two."""
    byte_s: float
    """Seconds a byte of a gradient or weight, in each direction."""
    message_byte_s: float
    """Seconds a byte of a message between processors."""
    crowding: float = 1.0
    """How many times longer the slowest of the ranks of a host computes than one alone."""

    def sum(self, size: int, count: float) -> float:
        """Seconds of summing `count` bytes over `size` ranks; a ring, in buckets."""
        buckets = math.ceil(count / (4 * BUCKET))
        return 2 * (size - 1) / size * count * self.byte_s + buckets * self.turns(size)

    def gather(self, size: int, count: float) -> float:
        """Seconds until every rank has the `count` bytes that all of them hold a part of."""
        return (size - 1) / size * count * self.byte_s + self.turns(size)

    def tell(self, size: int, count: float, times: int) -> float:
        """Seconds of so many messages that bring `count` bytes in all to every rank."""
        return (size - 1) / size * count * self.message_byte_s + times * self.turns(size)

    def turns(self, size: int) -> float:
        """Seconds of a message to all."""
        return math.ceil(math.log2(size)) * self.latency_s


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """What a device does with the two models of a run."""

    prefill: Rate
    """The student reads prompts into its cache: passes, tokens, pairs."""
    decode: Rate
    """A decoding step: steps, rows, and the tokens that rows look back at."""
    teacher: Rate
    """The teacher's forward pass, without its head."""
    student: Rate
    """Forward and backward pass of the student's layers."""
    head: Rate
    """The sweep over the vocabulary, both heads: chunks and scored tokens."""
    look: Rate
    """The student's forward pass with its head, without gradient."""
    optimizer: Rate
    """Clipping and AdamW: steps and trained numbers."""
    record: Rate
    """Judging, statistics and records, which every rank does for the whole step: steps, tokens."""
    rollout_s: float
    """Seconds a token to pack a rollout and unpack it; ranks read those of all ranks."""
    answer_s: float
    """Seconds a log-probability to read a server's answer."""
    disk_byte_s: float
    """Seconds a byte to write and read a file."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of a run, in tokens and bytes."""

    prompts: int
    """Prompts of the step, on all ranks."""
    group_size: int
    """Rollouts of each."""
    prompt_tokens: float
    """Tokens of a prompt."""
    lengths: Lengths
    """Tokens of completions."""
    decode_batch: int
    """Rollouts decoded at once."""
    micro_batch: int
    """Rollouts of one forward and backward pass."""
    chunk: int
    """Tokens of one chunk of the sweep over the vocabulary."""
    student_bytes: int
    """Of the student's weights as they are kept."""
    trained: int
    """Numbers that learn."""
    together: int = 1
    """Steps whose rollouts are decoded together."""
    pass_tokens: int = 256
    """Tokens that a pass more may cost where it saves padding."""
    shares: bool = True
    """Whether copies of a prompt in one micro-batch are read once."""
    references: int = 0
    """Further frozen models of the student's size that are read with each micro-batch."""
    listed: int = 0
    """Log-probabilities a token of a served teacher's answer."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who does the step."""

    ranks: int = 1
    """Processes that train, a device each."""
    kind: Literal["none", "ddp", "fsdp2"] = "none"
    """How the student is held."""
    link: Link | None = None
    """Between the ranks; the slowest that any two use."""
    teacher_devices: int = 0
    """Devices of teacher servers; 0 has the teacher on every rank."""
    student_devices: int = 0
    """Devices of student servers that sample; 0 samples on the ranks."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of one step by phase, on the slowest rank."""

    seconds: Mapping[str, float]
    """By phase."""
    tokens: float
    """Expected completion tokens of the step."""

    @property
    def step_s(self) -> float:
        """Seconds of the step."""
        return sum(self.seconds.values())

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second."""
        return self.tokens / self.step_s

    @property
    def limit(self) -> str:
        """The phase that takes most."""
        return max(self.seconds, key=lambda phase: self.seconds[phase])


def pass_tokens(student: int, teacher: int, device: str) -> int:
    """Tokens that training weighs as much as one pass more, by numbers of weights."""
    flops = PASS_FLOPS.get(device, PASS_FLOPS_ELSEWHERE)
    return int(min(256, max(16, flops / (6 * student + 2 * teacher))))


def step_cost(work: Workload, speeds: Speeds, layout: Layout = Layout()) -> StepCost:
    """What a step takes.

    Raises:
        ValueError: several ranks without a link.
    """
    if layout.ranks > 1 and layout.link is None:
        raise ValueError("several ranks need a link")
    tokens = work.prompts * work.group_size * work.lengths.mean
    computed = {
        **_sampling(work, speeds, layout),
        **_update(work, speeds, layout),
        **_after(work, speeds, layout, tokens),
    }
    crowding = layout.link.crowding if layout.link is not None and layout.ranks > 1 else 1.0
    seconds = {phase: crowding * s for phase, s in computed.items()}
    seconds |= _transfers(work, speeds, layout, tokens)
    return StepCost({phase: s for phase, s in seconds.items() if s > 0}, tokens)


def _sampling(work: Workload, speeds: Speeds, layout: Layout) -> dict[str, float]:
    """Prompts read once each, then step by step; the step waits for the slowest rank."""
    hands = layout.student_devices or layout.ranks
    prompts = math.ceil(work.together * work.prompts / hands)
    rollouts = prompts * work.group_size
    whole, rest = divmod(rollouts, work.decode_batch)
    prefill = decode = 0.0
    for size, times in ((work.decode_batch, whole), (rest, 1 if rest else 0)):
        if not times:
            continue
        read = math.ceil(size / work.group_size) * work.prompt_tokens
        todo = expected_decoding(work.lengths, size, work.prompt_tokens)
        prefill += times * speeds.prefill.seconds(1, read, read * work.prompt_tokens)
        decode += times * speeds.decode.seconds(todo.passes, todo.rows, todo.pairs)
    longest = work.lengths.longest(rollouts)
    slowest = work.lengths.longest(rollouts * layout.ranks) - longest
    waiting = slowest * speeds.decode.seconds(1, 1, work.prompt_tokens + longest)
    seconds = {"prefill": prefill, "decode": decode, "stragglers": waiting}
    return {phase: s / work.together for phase, s in seconds.items()}


def _update(work: Workload, speeds: Speeds, layout: Layout) -> dict[str, float]:
    """Micro-batches as wide as their longest rollout; copies of a prompt in one are left out."""
    own = math.ceil(work.prompts * work.group_size / layout.ranks)
    teacher = student = head = 0.0
    for size, width, scored in _micro_batches(work, layout, own):
        passes, positions, pairs = _passed(work, layout, size, width)
        teacher += speeds.teacher.seconds(passes, positions, pairs)
        student += speeds.student.seconds(passes, positions, pairs)
        student += work.references * speeds.look.seconds(passes, positions, pairs)
        head += speeds.head.seconds(math.ceil(scored / work.chunk), scored)
    answers = 0.0
    if layout.teacher_devices:
        teacher *= layout.ranks / layout.teacher_devices
        read = own * (work.prompt_tokens + work.lengths.mean)
        answers = read * (work.listed + 1) * speeds.answer_s
    return {"teacher": teacher, "answers": answers, "update": student, "head": head}


def _micro_batches(work: Workload, layout: Layout, own: int) -> list[tuple[int, float, float]]:
    """Rows, width, scored tokens of each micro-batch of a rank, as `gradient._cut` makes them."""
    from tutelage.data.collate import cut_by_length

    rollouts = work.prompts * work.group_size
    if _by_prompt(work, layout):
        sizes = [min(work.micro_batch, own - i) for i in range(0, own, work.micro_batch)]
        return [
            (n, work.prompt_tokens + work.lengths.longest(n), n * work.lengths.mean) for n in sizes
        ]
    places = [min((i + 1) * layout.ranks, rollouts) for i in range(own)]
    lengths = work.lengths.ordered(places, rollouts)
    widths = [round(work.prompt_tokens + length) for length in lengths]
    overhead = sum(widths) * layout.ranks if layout.teacher_devices else work.pass_tokens
    parts = cut_by_length(widths, work.micro_batch, overhead)
    mine = sum(lengths)
    share = own * work.lengths.mean / mine  # places are those of the longest of each deal
    return [
        (
            part.stop - part.start,
            work.prompt_tokens + lengths[part.stop - 1],
            share * sum(lengths[part]),
        )
        for part in parts
    ]


def _by_prompt(work: Workload, layout: Layout) -> bool:
    """Whether rollouts of one prompt are put into one micro-batch."""
    rollouts = work.prompts * work.group_size
    saved = (rollouts - work.prompts) * work.prompt_tokens
    tokens = rollouts * (work.prompt_tokens + work.lengths.mean)
    return work.shares and layout.ranks == 1 and _saves_enough(saved, tokens)


def _passed(work: Workload, layout: Layout, size: int, width: float) -> tuple[float, float, float]:
    """Passes, positions and pairs of a micro-batch: one pass, or prompts and then completions."""
    rollouts = work.prompts * work.group_size
    unique = float(math.ceil(size / work.group_size))
    if not _by_prompt(work, layout):
        unique = work.prompts * (1 - (1 - size / rollouts) ** work.group_size)
    prompt = work.prompt_tokens
    if work.shares and _saves_enough((size - unique) * prompt, size * width):
        after = size * (width - prompt)
        return 2, unique * prompt + after, unique * prompt**2 + after * width
    return 1, size * width, size * width**2


def _saves_enough(saved: float, tokens: float) -> bool:
    """As `models.prefixes.saves_enough`."""
    return saved >= max(SHARED_TOKENS, SHARED_SHARE * tokens)


def _after(work: Workload, speeds: Speeds, layout: Layout, tokens: float) -> dict[str, float]:
    """AdamW, how far the policy moved, and what is written down."""
    rollouts = work.prompts * work.group_size
    chosen = math.ceil(max(min(4, rollouts), rollouts // MOVE_EVERY) / layout.ranks)
    width = work.prompt_tokens + work.lengths.longest(chosen)
    part = layout.ranks if layout.kind == "fsdp2" else 1
    written = speeds.record.seconds(1, tokens)
    if layout.ranks > 1:
        written += tokens * speeds.rollout_s
    return {
        "optimizer": speeds.optimizer.seconds(1, work.trained / part),
        "move": speeds.look.seconds(1, chosen * width, chosen * width**2),
        "record": written,
    }


def _transfers(work: Workload, speeds: Speeds, layout: Layout, tokens: float) -> dict[str, float]:
    """Messages, gradients or gathered layers, and weights for a server that samples."""
    synced = 0.0
    if layout.student_devices:
        synced = 2 * work.student_bytes * speeds.disk_byte_s / work.together
    if layout.link is None or layout.ranks == 1:
        return {"sync": synced}
    ranks, link = layout.ranks, layout.link
    told = tokens * (TABLE_BYTES + ROLLOUT_BYTES)
    told += work.prompts * work.group_size * work.prompt_tokens * PROMPT_BYTES
    messages = link.tell(ranks, told, MESSAGES)
    moved = link.sum(ranks, 4 * work.trained)
    if layout.kind == "fsdp2":
        # Gathered for the forward pass and again for the backward one, gradients scattered once;
        # whole for sampling, and once more to see how far the policy moved.
        parts = math.ceil(work.prompts * work.group_size / ranks / work.micro_batch)
        once = link.gather(ranks, work.student_bytes)
        moved = (parts * 3 + 1 + 1 / work.together) * once
    return {"messages": messages, "gradients": moved, "sync": synced}
