"""The cost model beside real steps, in one process and in two ranks.

    python benchmarks/cost_model.py [--steps 6] [--rounds 3]
    python benchmarks/cost_model.py --projection h100    # seconds; nothing is run

Two pairs (the embedded one, and a random one of some millions of weights) are profiled in
seconds, part by part. Then whole training runs are timed at settings that no part was fitted
on, by one process and by two ranks under torchrun (gloo, ddp), one thread each. All of that in
several rounds, since a machine is faster at one minute than at another; medians count.
Prints a table in Markdown: seconds of a step by the clock, processor seconds of the first rank,
and what the model says.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

# prompts a step, rollouts of each, most new tokens, rollouts of a micro-batch
EMBEDDED = [
    (64, 1, 28, 64),
    (16, 1, 28, 8),
    (32, 4, 16, 32),
    (128, 2, 28, 64),
    (512, 2, 28, 64),
    (512, 4, 20, 32),
]
RANDOM = [(16, 1, 64, 16), (8, 4, 24, 8), (24, 2, 48, 16), (96, 2, 64, 16), (64, 4, 40, 32)]
PHASES = (
    "prefill",
    "decode",
    "stragglers",
    "teacher",
    "update",
    "head",
    "record",
    "messages",
    "gradients",
)
Key = tuple[str, tuple[int, ...], int]  # pair, setting, ranks
Row = tuple[float, float, float]  # seconds by the clock, of the processor, and by the model
SETTINGS = {"embedded": EMBEDDED, "random": RANDOM}


def make_pairs(folder: Path) -> None:
    """Prompts, and a pair of Llamas with random weights of which one id in 30 ends an answer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from tutelage.lab.embedded import EMBEDDED_SPEC, model_path
    from tutelage.lab.tasks import write_prompts

    write_prompts(folder / "prompts.jsonl", EMBEDDED_SPEC.task.train_prompts(4000, 0))
    tokenizer = AutoTokenizer.from_pretrained(model_path("student"))
    for name, width, layers in (("student", 192, 3), ("teacher", 256, 5)):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=2048,
            hidden_size=width,
            intermediate_size=3 * width,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        model = LlamaForCausalLM(config)
        model.generation_config.eos_token_id = list(range(2, 2048, 30))
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def kind(ranks: int) -> Any:
    """How the student is held."""
    from tutelage.config.distributed import DDP, SingleProcess

    return DDP() if ranks > 1 else SingleProcess()


def settings(folder: Path, pair: str, shape: tuple[int, ...], steps: int, ranks: int) -> Any:
    """A run of that shape; the learning rate is so small that lengths stay."""
    from tutelage.config import parse_config
    from tutelage.lab.embedded import VERIFIER, model_path

    prompts, group, tokens, micro = shape
    paths = [folder / "student", folder / "teacher"]
    if pair == "embedded":
        paths = [model_path("student"), model_path("compatible")]
    name = f"{pair}-{'-'.join(map(str, shape))}-{ranks}-{time.time_ns()}"
    return parse_config(
        {
            "student": {"path": str(paths[0])},
            "teacher": {"path": str(paths[1])},
            "data": {
                "prompts": str(folder / "prompts.jsonl"),
                "held_out": 4,
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": prompts, "group_size": group, "max_new_tokens": tokens},
            "objective": {"type": "full"},
            "optimizer": {"lr": 1e-9, "micro_batch_size": micro},
            "evaluation": {"every": 0, "teacher": 0},
            "guards": {"causes": False},
            "distributed": kind(ranks).model_dump(),
            "run": {
                "dir": str(folder / name),
                "steps": steps,
                "save_every": 0,
                "record_rollouts": 0,
            },
        }
    )


def work(folder: Path, steps: int, output: Path) -> None:
    """One rank: a profile of each pair, and the time of every setting."""
    import torch

    from tutelage.ranks.joining import joined
    from tutelage.runs.interrupts import Interrupts
    from tutelage.sizing.measuring import measure_profile
    from tutelage.training import train

    torch.set_num_threads(1)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    found: dict[str, Any] = {"rows": [], "profiles": {}}
    with Interrupts() as interrupts, joined(kind(ranks), interrupts) as (group, _):
        for pair, shapes in SETTINGS.items():
            longest = max(tokens for _, _, tokens, _ in shapes)
            config = settings(folder, pair, (64, 1, longest, 64), 1, ranks)
            profile = measure_profile(config, group)
            found["profiles"][pair] = profile.model_dump(mode="json")
    for pair, shapes in SETTINGS.items():
        for shape in shapes:
            seen: list[tuple[float, float]] = []

            def note(record: Any, seen: list[tuple[float, float]] = seen) -> None:
                if record["kind"] == "train":
                    seen.append((time.perf_counter(), time.process_time()))

            config = settings(folder, pair, shape, steps, ranks)
            if ranks > 1:  # both ranks must name one directory
                run = config.run.model_copy(
                    update={"dir": str(folder / f"{pair}-{'-'.join(map(str, shape))}-{ranks}")}
                )
                config = config.model_copy(update={"run": run})
            result = train(config, observer=note, overwrite=True)
            gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(seen)]
            if not gaps:
                continue
            records = [
                json.loads(line) for line in (result.run / "metrics.jsonl").read_text().splitlines()
            ]
            later = [r for r in records if r["kind"] == "train"][1:]
            found["rows"].append(
                {
                    "pair": pair,
                    "shape": shape,
                    "ranks": ranks,
                    "clock_s": median(g[0] for g in gaps),
                    "processor_s": median(g[1] for g in gaps),
                    "tokens": median(r["tokens"] for r in later),
                    "phases": {
                        key: median(r[key] for r in later)
                        for key in later[0]
                        if key.startswith("perf/") and key.endswith("_s")
                    },
                }
            )
    if os.environ.get("RANK", "0") == "0":
        output.write_text(json.dumps(found))


def launch(folder: Path, steps: int, ranks: int) -> dict[str, Any]:
    """Time all settings in processes of their own."""
    output = folder / f"found-{ranks}.json"
    words = [__file__, "--work", str(folder), "--steps", str(steps), "--output", str(output)]
    command = [sys.executable, *words]
    if ranks > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        command = [sys.executable, *torchrun, *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{ranks} rank(s) failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(output.read_text())
    return found


def main() -> None:
    """Profile, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--phases", action="store_true", help="also by phase")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--projection", metavar="HARDWARE")
    arguments = parser.parse_args()
    if arguments.projection:
        print(projection(arguments.projection))
        return
    if arguments.work is not None:
        work(arguments.work, arguments.steps, arguments.output)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pairs(folder)
        rows: dict[Key, list[Row]] = {}
        for _ in range(arguments.rounds):
            for ranks in (1, 2):
                found = launch(folder, arguments.steps, ranks)
                print_machine(found, ranks)
                for key, row in compared(folder, found, arguments.phases):
                    rows.setdefault(key, []).append(row)
        print_table(rows)


def projection(name: str) -> str:
    """A run of a 1.7B student and an 8B teacher on more and more devices: never run, all of it."""
    from tutelage.sizing.cost import Layout, Workload, step_cost
    from tutelage.sizing.datasheets import speeds_on
    from tutelage.sizing.lengths import geometric
    from tutelage.sizing.profiles import Hardware, read_profile
    from tutelage.sizing.shapes import Shape

    hardware = read_profile(name)
    assert isinstance(hardware, Hardware)

    def shape(layers: int, width: int, inner: int, queries: int) -> Shape:
        body = layers * (2 * width * (queries + 1024) + 3 * width * inner)
        return Shape(
            parameters=body + 2 * 151_936 * width,
            body=body,
            head=151_936 * width,
            layers=layers,
            width=width,
            inner=inner,
            queries=queries,
            keys=1024,
            vocabulary=151_936,
        )

    student, teacher = shape(28, 2048, 6144, 2048), shape(36, 4096, 12288, 4096)
    speeds = speeds_on(hardware, student, teacher, "bfloat16", "bfloat16")
    lines = [
        f"PROJECTION, {hardware.name}: never run. 32 rollouts a rank in groups of 4, prompts",
        "of 300 tokens, completions of 2,000 (geometric, 8,192 at most), micro-batches of 4.",
        "",
        "| ranks | | s a step | tokens/s | a device | takes most | share | prefill | decode "
        "| stragglers | teacher | update | head | record | messages | gradients |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for ranks in (1, 8, 64, 512, 4096):
        kinds = ("none",) if ranks == 1 else ("ddp", "fsdp2")
        for kind in kinds:
            within = ranks <= hardware.devices_per_host
            link = hardware.within_host if within else hardware.between_hosts
            work = Workload(
                prompts=8 * ranks,
                group_size=4,
                prompt_tokens=300,
                lengths=geometric(2000, 8192),
                decode_batch=256,
                micro_batch=4,
                chunk=2**24 // student.vocabulary,
                student_bytes=4 * student.parameters,
                trained=student.parameters,
            )
            layout = Layout(ranks=ranks, kind=kind, link=link.link(hardware.message_bytes_per_s))
            told = step_cost(work, speeds, layout)
            parts = " | ".join(f"{told.seconds.get(part, 0.0):.2f}" for part in PHASES)
            lines.append(
                f"| {ranks} | {kind} | {told.step_s:.1f} | {told.tokens_per_s:,.0f} | "
                f"{told.tokens_per_s / ranks:,.0f} | {told.limit} | "
                f"{told.seconds[told.limit] / told.step_s:.0%} | {parts} |"
            )
    return "\n".join(lines)


def print_machine(found: Any, ranks: int) -> None:
    """What a round found of the machine."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    print(f"{ranks} rank(s), one thread each; {platform.machine()}, load {load:.1f}")
    for pair, profile in found["profiles"].items():
        decode, link = profile["speeds"]["decode"], profile["link"]
        print(
            f"{pair}: profile in {profile['seconds']:.1f} s; decode {1e3 * decode['pass_s']:.2f} "
            f"ms a step and {1e6 * decode['token_s']:.1f} us a row; {profile['name']}"
        )
        if link is not None:
            print(
                f"link: {1e6 * link['latency_s']:.0f} us a message, {1e-6 / link['byte_s']:.0f} "
                f"MB/s of gradients, {1e-6 / link['message_byte_s']:.0f} MB/s of messages; waiting "
                f"for the slower one takes {link['crowding']:.2f} times as long"
            )
    print(flush=True)


def compared(folder: Path, found: Any, phases: bool) -> Iterator[tuple[Key, Row]]:
    """Each setting of a round: clock, processor and model."""
    from tutelage.sizing.cost import Layout, step_cost
    from tutelage.sizing.hosts import workload
    from tutelage.sizing.profiles import Measured

    for row in found["rows"]:
        profile = Measured.model_validate(found["profiles"][row["pair"]])
        shape = tuple(row["shape"])
        config = settings(folder, row["pair"], shape, 1, row["ranks"])
        todo = workload(
            config, profile.prompt_tokens, profile.lengths.cut(shape[2]), profile.device
        )
        layout = Layout(ranks=row["ranks"], kind=config.distributed.type, link=profile.link)
        said = step_cost(todo, profile.speeds, layout)
        if phases:
            print(row["pair"], *shape, row["ranks"])
            print("   measured", {k: round(v, 4) for k, v in row["phases"].items()})
            print("   model", {k: round(v, 4) for k, v in said.seconds.items()})
            print("   tokens", row["tokens"], round(said.tokens))
        yield (
            (row["pair"], shape, row["ranks"]),
            (row["clock_s"], row["processor_s"], said.step_s),
        )


def print_table(rows: Mapping[Key, list[Row]]) -> None:
    """A row a setting, medians of the rounds."""
    print(
        "| pair | prompts x rollouts, tokens, micro | ranks | clock, s | processor, s | model, s "
        "| of clock |"
    )
    print("|---|---|---|---|---|---|---|")
    errors: dict[int, list[float]] = {}
    for (pair, (prompts, group, tokens, micro), ranks), rounds in rows.items():
        clock, processor, model = (median(part) for part in zip(*rounds, strict=True))
        ratio = median(row[2] / row[0] for row in rounds)
        errors.setdefault(ranks, []).append(abs(ratio - 1))
        print(
            f"| {pair} | {prompts} x {group}, {tokens}, {micro} | {ranks} | {clock:.3f} | "
            f"{processor:.3f} | {model:.3f} | {ratio:.2f} |"
        )
    print()
    for ranks, off in errors.items():
        print(
            f"{ranks} rank(s), by the clock: {sum(o <= 0.2 for o in off)} of {len(off)} within "
            f"20 %, median {100 * median(off):.0f} %, most {100 * max(off):.0f} %"
        )


if __name__ == "__main__":
    main()
