"""A suite of the lab on SmolLM2-135M: a real chat model takes over its teacher's pattern.

    python recipes/smollm2/prepare.py models --steps 1    # only models/smollm2 is needed
    python benchmarks/lab_smollm2.py --models models --questions MATH-500.json --output runs/smol

The teacher is the student after some supervised steps on the answers of real questions, written in
one fixed pattern; the questions of its training, of the distillation and of the evaluation are
different ones. Seeds differ in all of them. What is finished is kept; the same command goes on.
"""

import argparse
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tutelage.config import ModelConfig, PromptFormat, parse_config
from tutelage.data.collate import collate
from tutelage.data.prompts import load_prompts
from tutelage.data.render import render
from tutelage.lab.arms import Size
from tutelage.lab.running import judge_suite
from tutelage.lab.suite import Suite, before_and_after
from tutelage.lab.tasks import write_prompts
from tutelage.lab.told import block
from tutelage.lab.verdicts import Part, Seed
from tutelage.models.anatomy import quiet_transformers
from tutelage.models.loading import load_model
from tutelage.ops.logprobs import gather
from tutelage.runs.directory import read_lines
from tutelage.runs.ledger import Ledger
from tutelage.runs.seals import digest_of
from tutelage.training import train
from tutelage.types import Message, RenderedPrompt, Rollout

KEPT = ("kl/reverse", "overlap/mass_student", "entropy/gap", "entropy/student", "accuracy")
HELD_OUT = 8


def share_left(seed: Seed) -> float | None:
    """Reverse KL at the end as a share of that at the start, on held-out questions."""
    start, end = seed.start("distilled", "kl/reverse"), seed.end("distilled", "kl/reverse")
    return None if not start or end is None else end / start


SUITE = Suite(
    claim="On-policy distillation carries a teacher's pattern into a real chat model.",
    mirrors="2604.13016, figure 6: reverse KL falls and shared mass rises where training works",
    arms={},
    parts=(
        Part(says="held-out reverse KL at the end, share of the start's", of=share_left, below=0.8),
        Part(
            says="rise of the student's mass on shared tokens, held out",
            of=lambda s: s.gain("distilled", "overlap/mass_student"),
            above=0.0,
        ),
    ),
    shown=before_and_after("kl/reverse", "distilled"),
    unit="held-out reverse KL, nats a token",
    draws=("kl/reverse", "overlap/mass_student"),
    tasks=(),
)


@dataclass(frozen=True, kw_only=True)
class Work:
    """How much is done."""

    size: Size
    imitation: int
    """Supervised steps of the teacher."""
    batch: int
    """Answers of each."""
    longest: int
    """Most tokens of a question."""
    tokens: int
    """Of a rollout."""


def make_teacher(
    student: Path, output: Path, prompts: Sequence[RenderedPrompt], work: Work
) -> None:
    """The student after next-token loss on answers in the fixed pattern."""
    model = load_model(ModelConfig(path=str(student)), "teacher")
    optimizer = torch.optim.AdamW(model.model.parameters(), lr=5e-5, weight_decay=0.0)
    for step in range(work.imitation):
        rows = prompts[step * work.batch : (step + 1) * work.batch]
        batch = collate([_answered(model, prompt) for prompt in rows])
        loss = -gather(model.state_logprobs(batch), batch.targets).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.model.parameters(), 1.0)
        optimizer.step()
        print(f"teacher, step {step + 1}/{work.imitation}: loss {loss.item():.3f}", flush=True)
    with quiet_transformers():
        model.model.save_pretrained(output)
        model.tokenizer.save_pretrained(output)


def _answered(model: Any, prompt: RenderedPrompt) -> Rollout:
    text = f"Result: **{prompt.prompt.answer}** (checked)."
    ids = (
        *model.tokenizer(text, add_special_tokens=False)["input_ids"],
        model.tokenizer.eos_token_id,
    )
    return Rollout(
        prompt=prompt.prompt,
        index=0,
        prompt_ids=prompt.ids,
        completion_ids=ids,
        logprobs=(0.0,) * len(ids),
        finish_reason="stop",
        text=text,
        policy_step=0,
    )


def distilled(folder: Path, student: Path, questions: str, seed: int, work: Work) -> dict[str, Any]:
    """The evaluations of one seed."""
    folder.mkdir(parents=True, exist_ok=True)
    size, model = work.size, load_model(ModelConfig(path=str(student)), "student")
    asked = [
        replace(prompt, messages=(Message(role="user", content=prompt.question),), text="")
        for prompt in load_prompts(questions)
    ]
    rendered, _ = render(asked, model.tokenizer, PromptFormat(), work.longest)
    counts = np.cumsum([work.imitation * work.batch, size.steps * size.prompts, HELD_OUT])
    if len(rendered) < counts[-1]:
        raise SystemExit(f"{len(rendered)} questions are short enough, {counts[-1]} are needed")
    order = np.random.default_rng(seed).permutation(len(rendered))
    parts = [[rendered[i] for i in rows] for rows in np.split(order, counts)[:3]]
    for name, part in zip(("train", "held"), parts[1:], strict=True):
        write_prompts(folder / f"{name}.jsonl", [p.prompt for p in part])
    shutil.rmtree(folder / "teacher", ignore_errors=True)
    make_teacher(student, folder / "teacher", parts[0], work)
    config = parse_config(
        {
            "student": {"path": str(student)},
            "teacher": {"path": str(folder / "teacher")},
            "data": {
                "prompts": str(folder / "train.jsonl"),
                "eval_prompts": str(folder / "held.jsonl"),
                "max_prompt_tokens": work.longest,
            },
            "rollout": {"prompts_per_step": size.prompts, "max_new_tokens": work.tokens},
            "optimizer": {"lr": 2e-5, "micro_batch_size": size.prompts},
            "evaluation": {"every": size.every},
            "guards": {"causes": False},
            "run": {
                "dir": str(folder / "run"),
                "steps": size.steps,
                "seed": seed,
                "save_every": 0,
                "record_rollouts": 0,
            },
        }
    )
    run = train(config, overwrite=True).run
    records = [r for r in read_lines(run / "metrics.jsonl") if r["kind"] == "eval"]
    for path in (run / "checkpoints", run / "student", folder / "teacher"):
        shutil.rmtree(path, ignore_errors=True)
    curves = {key: [record.get(key) for record in records] for key in KEPT}
    return {"steps": [record["step"] for record in records], "curves": curves}


def main(words: Sequence[str] | None = None) -> None:
    """Do what is missing, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--questions", required=True, help="a prompts file with answers")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--imitation", type=int, default=12)
    arguments = parser.parse_args(words)
    torch.set_num_threads(1)
    work = Work(
        size=Size(steps=arguments.steps, prompts=4, held_out=HELD_OUT, every=arguments.steps),
        imitation=arguments.imitation,
        batch=4,
        longest=96,
        tokens=16,
    )
    ledger = Ledger(arguments.output / "units.jsonl")
    found = {}
    for seed in range(1, arguments.seeds + 1):
        unit = f"{seed}/{digest_of(f'{work!r} {Path(arguments.questions).name}')}"
        if unit not in ledger:
            started = time.process_time()
            folder = arguments.output / f"seed-{seed}"
            student = arguments.models / "smollm2"
            numbers = distilled(folder, student, arguments.questions, seed, work)
            numbers["cpu_s"] = round(time.process_time() - started, 1)
            ledger.record(unit, numbers)
        found[seed] = {"distilled": ledger[unit]}
    judged = judge_suite("smollm2", SUITE, found)
    print(block(judged))
    for label, value in judged.shown.items():
        print(f"  {label}: {value.to_dict()}")
    print(f"  {judged.cpu_s / 60:.1f} minutes of one processor")


if __name__ == "__main__":
    main()
