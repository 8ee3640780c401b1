"""Two workers of Ray against two plain processes, and what Ray costs a unit.

    python benchmarks/fan_out.py [--units 40] [--rounds 5]

Every round does, for align, cold start and evaluation of the embedded pair, the same units twice,
in an order that changes: by two workers that Ray placed, and by two processes that got half of
them each and know nothing of Ray. All have loaded before the clock starts and compute with one
thread. Prints a table in Markdown. The machine should be idle; on a busy one the ratio of processor
seconds, those of Ray's own processes included, says what two cores of an idle one would do at best.
"""

import argparse
import json
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import psutil

os.environ["OMP_NUM_THREADS"] = "1"

from tutelage.alignment.bench import plant
from tutelage.alignment.growing import growths, load_bench, roll
from tutelage.alignment.job import prepare_bench
from tutelage.config import Config, RayEngine, parse_config
from tutelage.data.render import render
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.models.local import draws_of
from tutelage.rescue.cold_start import load_teacher_bench, questions_asked
from tutelage.rescue.cold_start_rollouts import AnswerBatch, answer
from tutelage.scale.engines import workers_of
from tutelage.scale.sampling import DrawBatch, draw_batch, load_sampler
from tutelage.scale.units import Job, MapUnits
from tutelage.types import SamplingParams

ROWS = 64


def settings(folder: Path) -> Config:
    """The embedded pair with its own questions."""
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(640, seed=3)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return parse_config(
        {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {
                "prompts": str(folder / "prompts.jsonl"),
                "held_out": 8,
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"max_new_tokens": 28, "batch_size": ROWS},
            "align": {"questions": 32, "samples": 6, "budget": 120_000},
        }
    )


def jobs(config: Config, count: int) -> dict[str, tuple[Job[Any, Any, Any], dict[str, Any]]]:
    """What is timed: a job and its units, by name."""
    bench = prepare_bench(config)
    tree, vocabulary = plant(bench), bench.student.vocabulary
    grown = {str(i): g for i, g in enumerate(growths(tree, ROWS)[:count])}
    asked, _ = questions_asked(config)
    slots = [(prompt.for_teacher(), 0) for prompt in asked]
    tried = {
        str(i): AnswerBatch(tuple(slots[(i * ROWS) % 512 :][:ROWS]), attempt=i)
        for i in range(count)
    }
    rendered, _ = render(
        [p.prompt for p in asked], bench.student.tokenizer, config.student, 1024, True
    )
    draws = draws_of(rendered, 8)
    params = SamplingParams(max_new_tokens=28)
    drawn = {
        str(i): DrawBatch(tuple(draws[(i * ROWS) % 4096 :][:ROWS]), params, seed=0, step=i)
        for i in range(count)
    }
    sampler = partial(load_sampler, config.student, "model", vocabulary)
    return {
        "align": (Job(prepare=partial(load_bench, config, vocabulary), work=roll), grown),
        "cold start": (Job(prepare=partial(load_teacher_bench, config, None), work=answer), tried),
        "evaluation": (Job(prepare=sampler, work=draw_batch), drawn),
    }


def nothing_held() -> int:
    """Loads nothing."""
    return 0


def nothing_done(held: int, unit: int) -> int:
    """Does nothing."""
    return unit


class Plain:
    """Two processes that load a job, and then do half of its units each when they are told to."""

    def __init__(self, job: Job[Any, Any, Any], units: Mapping[str, Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for part in range(2):
            here, there = context.Pipe()
            mine = list(units.values())[part::2]
            process = context.Process(target=plain_work, args=(there, job.prepare, job.work, mine))
            process.start()
            self.pipes.append(here)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def seconds(self) -> tuple[float, float]:
        """From the word to the later one's end, results discarded; and of the processors."""
        began = time.perf_counter()
        for pipe in self.pipes:
            pipe.send("go")
        spent = [pipe.recv() for pipe in self.pipes]
        return time.perf_counter() - began, sum(spent)

    def end(self) -> None:
        """Let both processes end."""
        for pipe in self.pipes:
            pipe.send("end")
        for process in self.processes:
            process.join()


def plain_work(pipe: Any, prepare: Callable[[], Any], work: Any, units: list[Any]) -> None:
    """What a plain process does."""
    import torch

    torch.set_num_threads(1)
    held = prepare()
    for unit in units[:2]:
        work(held, unit)
    pipe.send("ready")
    while pipe.recv() == "go":
        began = time.process_time()
        for unit in units:
            work(held, unit)
        pipe.send(time.process_time() - began)


def on_ray(
    map_units: MapUnits, job: Job[Any, Any, Any], units: Mapping[str, Any]
) -> tuple[float, float]:
    """Seconds until every unit's result is here; and of the processors, Ray's own included."""
    began, before = time.perf_counter(), spent_here()
    assert sum(1 for _ in map_units(job, units)) == len(units)
    return time.perf_counter() - began, spent_here() - before


def spent_here() -> float:
    """Processor seconds of this process and all that it has started; the plain ones are idle."""
    me = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [me, *me.children(recursive=True)])


def told(ratios: list[float]) -> str:
    """Median, least and most."""
    return f"{median(ratios):.3f} [{min(ratios):.3f}, {max(ratios):.3f}]"


def measure(count: int, rounds: int) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        config = settings(Path(name))
        print(
            "| verb | units | s a unit, plain | two processes, s | two workers, s | ratio | "
            "processor s, plain | with workers | ratio |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for verb, (job, units) in jobs(config, count).items():
            plain, job = Plain(job, units), replace(job, here=None)
            times = []
            with workers_of(RayEngine(workers=2), "student") as map_units:
                on_ray(map_units, job, units)  # both have loaded
                for turn in range(rounds):
                    if turn % 2:
                        r, p = on_ray(map_units, job, units), plain.seconds()
                    else:
                        p, r = plain.seconds(), on_ray(map_units, job, units)
                    times.append((*p, *r))
            plain.end()
            p, spent, r, spent_ray = (median(side) for side in zip(*times, strict=True))
            print(
                f"| {verb} | {len(units)} | {2 * p / len(units):.3f} | {p:.2f} | {r:.2f} | "
                f"{told([t[0] / t[2] for t in times])} | {spent:.2f} | {spent_ray:.2f} | "
                f"{told([t[1] / t[3] for t in times])} |",
                flush=True,
            )
        with workers_of(RayEngine(workers=2), "student") as map_units:
            job = Job(prepare=nothing_held, work=nothing_done)
            on_ray(map_units, job, {str(i): i for i in range(100)})
            empty, _ = min(
                on_ray(map_units, job, {str(i): i for i in range(2000)}) for _ in range(3)
            )
        print(
            f"\nA unit that does nothing costs {empty / 2000 * 1e3:.2f} ms (2,000 on two workers)."
        )
    print(
        f"Ratio: two processes' time by two workers', median [least, most] of {rounds} rounds. "
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, load before "
        f"{os.getloadavg()[2]:.1f}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--units", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    measure(given.units, given.rounds)
