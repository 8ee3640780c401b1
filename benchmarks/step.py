"""Whole training steps against TRL's DistillationTrainer and against the machine's own limits.

    pip install trl==1.16.0 datasets accelerate   # in an environment with tutelage
    python recipes/smollm2/prepare.py models --steps 1   # for cases C and E
    python benchmarks/step.py --cases A B C D E --smollm2 models/smollm2
    python benchmarks/step.py --cases B F --device cuda      # case F is for a GPU

Each side is its real training loop in a process of its own, which takes a step when it is told to,
so the sides take turns and never run at once. Same models, same prompts, same limits: full
vocabulary reverse KL at temperature 1, AdamW, float32 (case F: layers of both in bfloat16),
gradient checkpointing off. With
`--defaults` both take their defaults instead (ours: the top-16 bucket of `recommended`; TRL's:
gradient checkpointing). Medians after one warm-up step; prints the tables of docs/benchmarks.md.

The floor of a step is arithmetic: see `floor`. The bare time is measured: forward and backward of
the student and a forward pass of the teacher, by plain transformers calls, over the rollouts that
the step has just trained on, in as large batches. "plain" is the same with what a reverse KL needs
at the least between them, by autograd: two log-softmaxes and their products. No metrics are in it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

SIDES = ("tutelage", "trl")


@dataclass(frozen=True)
class Shape:
    """A Qwen3 with random weights, tied embeddings and as many rows of heads as given."""

    width: int
    layers: int
    inner: int
    heads: int
    key_heads: int
    head_dim: int

    @property
    def body(self) -> int:
        """Weights of its layers, norms left out."""
        attention = 2 * self.width * self.head_dim * (self.heads + self.key_heads)
        return self.layers * (attention + 3 * self.width * self.inner)


def small(width: int, layers: int) -> Shape:
    """Heads of 32, as many for keys."""
    return Shape(width, layers, 3 * width, width // 32, width // 32, 32)


@dataclass(frozen=True)
class Case:
    """What both sides are told to do."""

    says: str
    """Student <- teacher, and what is sampled."""
    prompts: int
    """Prompts of a step."""
    new_tokens: int
    """Most tokens of a completion."""
    group_size: int = 1
    """Rollouts of a prompt."""
    prompt_tokens: int = 8
    """Tokens of a prompt, on average."""
    student: Shape | None = None
    """None is SmolLM2-135M-Instruct."""
    teacher: Shape | None = None
    """Likewise."""
    vocabulary: int = 49_152
    steps: int = 5
    """Steps of each side after the first."""
    at_once: int = 64
    """Most rollouts of one forward and backward pass; the whole step, where memory allows."""
    half: bool = False
    """The student's layers compute in bfloat16, and the teacher's weights are so."""


SMALL, LARGE = small(128, 4), small(256, 6)
CASES = {
    "A": Case("Qwen3 0.8 M <- 4.9 M, V 64", 64, 64, 1, 8, SMALL, LARGE, 64, 15),
    "B": Case(
        "Qwen3 d128 L2 <- d256 L4, V 32,000",
        16,
        64,
        student=small(128, 2),
        teacher=small(256, 4),
        vocabulary=32_000,
        steps=9,
        at_once=16,
    ),
    "C": Case("SmolLM2-135M <- itself", 8, 32, 1, 24, at_once=8),
    "D": Case("as A, lengths geometric, mean 64", 64, 512, 1, 8, SMALL, LARGE, 64, 9),
    "E": Case("SmolLM2-135M <- itself, 512-token prompts", 4, 32, 4, 512, steps=3, at_once=4),
    "F": Case(
        "shapes of Qwen3-0.6B <- 1.7B, V 151,936",
        32,
        128,
        prompt_tokens=100,
        student=Shape(1024, 28, 3072, 16, 8, 128),
        teacher=Shape(2048, 28, 6144, 16, 8, 128),
        vocabulary=151_936,
        steps=4,
        at_once=8,
        half=True,
    ),
}


# --- what both sides read --------------------------------------------------------------------


def write_models(case: Case, smollm2: Path | None, folder: Path, device: str) -> tuple[Path, Path]:
    """Folders of student and teacher."""
    if case.student is None or case.teacher is None:
        if smollm2 is None:
            raise SystemExit("cases C and E need --smollm2 FOLDER; see the top of this file")
        return smollm2, smollm2
    return (
        _random_model(case, case.student, folder / "student", 1, torch.float32, device),
        _random_model(case, case.teacher, folder / "teacher", 2, _teacher_type(case), device),
    )


def _teacher_type(case: Case) -> torch.dtype:
    return torch.bfloat16 if case.half else torch.float32


def _random_model(
    case: Case, shape: Shape, folder: Path, seed: int, dtype: torch.dtype, device: str
) -> Path:
    """With random weights each of V tokens, the end among them, has about one chance in V."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(case.vocabulary - 2))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    ).save_pretrained(folder)
    with torch.device(device):  # where random numbers are drawn fast
        model = random_qwen3(shape, case.vocabulary, seed, eos=1)
    model.to(dtype).save_pretrained(folder)
    del model
    if device == "cuda":
        torch.cuda.empty_cache()  # the sides need it
    return folder


def random_qwen3(shape: Shape, vocabulary: int, seed: int, eos: int | None) -> Any:
    """A Qwen3 of this shape with random weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        head_dim=shape.head_dim,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=eos,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config).eval()


def write_prompts(case: Case, student: Path, file: Path) -> None:
    """Random prompts of some different lengths, as text, in the order both sides take them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student)
    words = (
        [f"w{i}" for i in range(case.vocabulary - 2)]
        if case.student
        else [t[1:] for t in sorted(tokenizer.get_vocab()) if t[0] == "Ġ" and t[1:].isalpha()]
    )
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    few, many = round(case.prompt_tokens * 0.75), round(case.prompt_tokens * 1.25)
    with file.open("w") as out:
        for i in range(case.prompts * (case.steps + 2)):
            text = " ".join(words[number(0, len(words))] for _ in range(number(few, many + 1)))
            out.write(json.dumps({"id": f"q{i}", "prompt": text}) + "\n")


# --- the sides: each waits for a line, takes a step, and says what it took --------------------


def told() -> None:
    """Wait until this side has its turn."""
    if not sys.stdin.readline():
        os._exit(0)  # the last step was taken


class Teller:
    """Says how long a step took, and waits for the next turn."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what else is printed goes to stderr

    def begin(self) -> None:
        """The first turn: everything is loaded."""
        self._say({})

    def step(self, after: Callable[[], dict[str, Any]] = dict, **more: Any) -> None:
        """A step is over; what comes `after` is not of its time and memory."""
        wait_for_device()
        seconds = time.perf_counter() - self.started
        self._say({"seconds": seconds, "peak_mb": peak_bytes() / 1e6, **more, **after()})

    def _say(self, what: dict[str, Any]) -> None:
        print(json.dumps(what), file=self.out, flush=True)
        told()
        self.started = time.perf_counter()


def wait_for_device() -> None:
    """Until what was started on a GPU is done."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Most memory so far: of the GPU where one is used, else of the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def tutelage_side(
    case: Case, work: Path, models: tuple[Path, Path], defaults: bool, device: str
) -> None:
    """`tutelage.train`."""
    import tutelage.trainer as trainer
    from tutelage import parse_config, train

    objective: dict[str, Any] = {"type": "top_k"} if defaults else {"type": "full"}
    precision = "bfloat16" if case.half else "float32"
    config = parse_config(
        {
            "student": {"path": str(models[0]), "device": device},
            "teacher": {"path": str(models[1]), "device": device, "dtype": precision},
            "data": {
                "prompts": str(work / "prompts.jsonl"),
                "held_out": 0,
                "use_chat_template": False,
            },
            "rollout": {
                "prompts_per_step": case.prompts,
                "group_size": case.group_size,
                "max_new_tokens": case.new_tokens,
            },
            "objective": objective,
            "optimizer": {
                "lr": 1e-6,
                "micro_batch_size": case.at_once,
                "precision": precision,
            },
            "evaluation": {"every": 0, "teacher": 0},
            "run": {"dir": str(work / "run"), "steps": case.steps + 1, "save_every": 0},
        }
    )
    teller = Teller()
    rollouts: list[Any] = []
    used: list[Any] = []
    accumulate = trainer.accumulate

    def half_done(record: dict[str, Any]) -> bool:  # the peak of memory is known by then
        return bool(record["step"] > (case.steps + 1) // 2)

    def remember(models_: Any, objective_: Any, rollouts_: Any, **more: Any) -> Any:
        rollouts[:], used[:] = rollouts_, [models_, more["micro_batch_size"]]
        return accumulate(models_, objective_, rollouts_, **more)

    trainer.accumulate = remember  # type: ignore[assignment]
    next_rollouts = trainer.Trainer.next_rollouts

    def first_turn(self: Any) -> Any:
        if self.step == 0:
            teller.begin()
        return next_rollouts(self)

    trainer.Trainer.next_rollouts = first_turn  # type: ignore[method-assign]

    def observer(record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            phases = {k: v for k, v in record.items() if k.startswith("perf/") and k.endswith("_s")}
            teller.step(
                tokens=record["tokens"],
                longest=max(len(r.completion_ids) for r in rollouts),
                read=sum(len(r.prompt_ids) for r in rollouts),
                phases=phases,
                after=lambda: passes(*used, rollouts) if half_done(record) else {},
            )

    train(config, overwrite=True, observer=observer)


def passes(models: Any, size: int, rollouts: list[Any]) -> dict[str, float]:
    """Seconds of bare passes over these rollouts, and of those with a plain reverse KL."""
    return {
        "bare_s": passed(models, size, rollouts, with_loss=False),
        "plain_s": passed(models, size, rollouts, with_loss=True),
    }


def passed(models: Any, size: int, rollouts: list[Any], *, with_loss: bool) -> float:
    """Seconds of forward and backward passes by transformers and torch, in the batches we make."""
    from tutelage.gradient import micro_batches

    student, teacher = models.student.model, models.teacher.model
    kept = [p.grad for p in student.parameters()]
    for parameter in student.parameters():
        parameter.grad = None
    seconds = 0.0
    for part in micro_batches(models, rollouts, size):
        batch = part.batch
        wait_for_device()
        clock = time.perf_counter()
        mask = batch.loss_mask.to(student.device)
        inputs = {
            "input_ids": batch.input_ids.to(student.device),
            "attention_mask": batch.attention_mask.to(student.device),
        }
        with torch.no_grad():
            states = teacher.base_model(**inputs, use_cache=False).last_hidden_state
            wanted = teacher.get_output_embeddings()(states[mask])
        with models.student._as_set():
            states = student.base_model(**inputs, use_cache=False).last_hidden_state
            logits = student.get_output_embeddings()(states[mask])
        if with_loss:
            own = logits.float().log_softmax(-1)
            (own.exp() * (own - wanted.float().log_softmax(-1))).sum(-1).mean().backward()
        else:
            logits.backward(torch.full_like(logits, 1e-3))
        wait_for_device()
        seconds += time.perf_counter() - clock
    for parameter, gradient in zip(student.parameters(), kept, strict=True):
        parameter.grad = gradient
    return seconds


def trl_side(
    case: Case, work: Path, models: tuple[Path, Path], defaults: bool, device: str
) -> None:
    """TRL's stable trainer; it has no groups, so a prompt stands in its data as often."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(m, dtype=d)
        for m, d in zip(models, (torch.float32, _teacher_type(case)), strict=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(models[0], padding_side="left")
    rows = [json.loads(line) for line in (work / "prompts.jsonl").read_text().splitlines()]
    teller = Teller()

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            teller.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            teller.step()

    texts = [{"prompt": r["prompt"]} for r in rows for _ in range(case.group_size)]
    DistillationTrainer(
        model=student,
        teacher_model=teacher,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(texts),
        callbacks=[Turns()],
        args=DistillationConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=case.at_once,
            gradient_accumulation_steps=case.prompts * case.group_size // case.at_once,
            max_steps=case.steps + 1,
            bf16=case.half,
            use_cpu=device == "cpu",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            shuffle_dataset=False,
            learning_rate=1e-6,
            lr_scheduler_type="constant",
            gradient_checkpointing=defaults,
            max_completion_length=case.new_tokens,
        ),
    ).train()


# --- the floor --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What this machine does per second, with as many threads as the steps have."""

    flops: float
    bytes: float
    half_flops: float | None = None


def measure_machine(device: str) -> Machine:
    """Rates of large products in float32, on a GPU in bfloat16 too, and of reading memory."""
    from tutelage.ops.products import linear

    side, rows = (1024, 8192) if device == "cpu" else (8192, 32_768)
    a, b = torch.randn(2, side, side, device=device)
    big, vector = torch.randn(rows, rows, device=device), torch.randn(rows, device=device)

    def rate(work: float, call: Callable[[], object]) -> float:
        call()
        seconds = []
        for _ in range(7):
            wait_for_device()
            clock = time.perf_counter()
            call()
            wait_for_device()
            seconds.append(time.perf_counter() - clock)
        return work / median(seconds)

    work = 2 * side**3
    products = max(rate(work, lambda: a @ b), rate(work, lambda: linear(a, b)))
    halved = None
    if device != "cpu":
        c, d = a.bfloat16(), b.bfloat16()
        halved = rate(work, lambda: c @ d)
    return Machine(products, rate(4 * rows**2, lambda: big @ vector), halved)


def floor(case: Case, step: dict[str, Any], machine: Machine) -> dict[str, float]:
    """Seconds that the arithmetic of a step takes at the machine's own rates.

    Weights of the layers count 2 FLOPs a token in a forward pass and 4 in the backward; the head
    likewise, at the N scored tokens alone; attention is left out. Prompts are prefilled once each
    and read again in scoring and update. A decoding step needs its arithmetic, and has to read
    every weight once. AdamW reads and writes 7 numbers a weight. Where layers compute in bfloat16
    they and the teacher's head take that rate and 2 bytes a weight; the student's head stays.
    """

    def shape(model: Shape | None) -> tuple[int, int]:
        if model is None:
            return 30 * 3_540_096, 576 * case.vocabulary
        return model.body, model.width * case.vocabulary

    student, student_head = shape(case.student)
    teacher, teacher_head = shape(case.teacher)
    tokens, read = step["tokens"], step["read"]
    flops = machine.flops
    layers = machine.half_flops if case.half and machine.half_flops else flops
    prefill = 2 * student * read / case.group_size
    decode = 2 * tokens * (student / layers + student_head / flops)
    reading = ((2 if case.half else 4) * student + 4 * student_head) * step["longest"]
    rollout = prefill / layers + max(decode, reading / machine.bytes)
    states = tokens + read
    score = (2 * teacher * states + 2 * teacher_head * tokens) / layers
    update = 6 * (student * states / layers + student_head * tokens / flops)
    optimizer = 4 * 7 * (student + student_head) / machine.bytes
    return {
        "rollout": rollout,
        "score": score,
        "update": update,
        "optimizer": optimizer,
        "step": rollout + score + update + optimizer,
    }


# --- taking turns -----------------------------------------------------------------------------


@contextmanager
def side(name: str, arguments: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A side's process, loaded and waiting for its first turn."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--side", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            hear(process, log)
            yield process
        finally:
            process.kill()
            process.wait()


def hear(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """What a side says after its turn."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"a side ended: {log.read_text()[-3000:]}")
    return dict(json.loads(line))


def run_case(name: str, options: argparse.Namespace, folder: Path) -> dict[str, list[Any]]:
    """Steps of both sides, in an order that changes; the first one of each is left out."""
    case = CASES[name]
    models = write_models(case, options.smollm2, folder, options.device)
    write_prompts(case, models[0], folder / "prompts.jsonl")
    arguments = ["--cases", name, "--work", str(folder), "--models", *map(str, models)]
    arguments += ["--device", options.device, *(["--defaults"] if options.defaults else [])]
    steps: dict[str, list[Any]] = {s: [] for s in options.sides}
    with ExitStack() as stack:
        running = {
            s: stack.enter_context(side(s, arguments, folder / f"{s}.log")) for s in options.sides
        }
        for turn in range(case.steps + 1):
            for s in options.sides if turn % 2 else options.sides[::-1]:
                process = running[s]
                assert process.stdin is not None
                process.stdin.write("step\n")
                process.stdin.flush()
                said = hear(process, folder / f"{s}.log")
                if turn:
                    steps[s].append(said)
                    print(name, s, json.dumps(said), file=sys.stderr, flush=True)
    return steps


def median_of(steps: list[Any], key: str) -> float:
    """Median over steps of a number, or of a phase's seconds."""
    return median(
        s["phases"][key] if key.startswith("perf/") else s[key]
        for s in steps
        if key not in ("bare_s", "plain_s") or key in s
    )


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=list("ABD"), choices=list(CASES))
    parser.add_argument("--smollm2", type=Path)
    parser.add_argument("--defaults", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side:
        act = tutelage_side if options.side == "tutelage" else trl_side
        case = CASES[options.cases[0]]
        act(case, options.work, tuple(options.models), options.defaults, options.device)
        return
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    machine = measure_machine(options.device)
    halved = f", {machine.half_flops / 1e9:.0f} in bfloat16" if machine.half_flops else ""
    print(f"{machine.flops / 1e9:.0f} GFLOP/s{halved}, {machine.bytes / 1e9:.1f} GB/s")
    rows = []
    for name in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            steps = run_case(name, options, Path(folder))
        rows.append(row_of(name, steps, machine))
    print("\n".join(table(rows)))


def row_of(name: str, steps: dict[str, list[Any]], machine: Machine) -> dict[str, Any]:
    """What the table says of a case, in seconds and MB."""
    row: dict[str, Any] = {"case": name}
    for s in steps:
        row[s] = median_of(steps[s], "seconds")
        row[f"{s} peak"] = max(said["peak_mb"] for said in steps[s] if "bare_s" not in said)
    if "tutelage" in steps:
        ours = steps["tutelage"]
        sizes = {k: median_of(ours, k) for k in ("tokens", "read", "longest")}
        row["floor"] = floor(CASES[name], sizes, machine)["step"]
        for phase in ("rollout", "score", "update", "optimizer"):
            row[phase] = median_of(ours, f"perf/{phase}_s")
        for kind in ("bare", "plain"):
            row[kind] = median_of(ours, f"{kind}_s") / (row["score"] + row["update"])
    if len(steps) == len(SIDES):
        row["ratio"] = row["trl"] / row["tutelage"]
    return row


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [
            f"{v:.0f}" if k.endswith("peak") else f"{v:.3g}" if isinstance(v, float) else str(v)
            for k, v in row.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


if __name__ == "__main__":
    main()
