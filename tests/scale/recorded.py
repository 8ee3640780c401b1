"""Recorded rollouts through one process and through ranks, in float64; started by torchrun.

recorded.py FOLDER: models are in FOLDER/tied and FOLDER/untied; result.json tells of each case
the largest differences of losses and weights, and the share of the weights a rank holds.
"""

import json
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from tutelage.config import parse_config
from tutelage.models.sharded import own_parts, whole_tensor
from tutelage.ranks import ALONE
from tutelage.ranks.joining import joined
from tutelage.runs.directory import Run
from tutelage.runs.interrupts import Interrupts
from tutelage.session import prepare
from tutelage.trainer import Trainer

STEPS = 20
OBJECTIVES = {
    "tied": {"type": "top_k", "k": 8, "weight": {"type": "tip"}, "prompt_weight": "pass_rate"},
    "untied": {"type": "full", "divergence": "jsd", "return_to_go": 0.9},
}


def settings(folder, head, kind):
    return parse_config(
        {
            "student": {"path": str(folder / head), "gradient_checkpointing": head == "tied"},
            "teacher": {"path": str(folder / "teacher")},
            "data": {"prompts": str(folder / "prompts.jsonl"), "verifier": "numeric"},
            "rollout": {"prompts_per_step": 6, "group_size": 2, "max_new_tokens": 10},
            "objective": OBJECTIVES[head],
            "optimizer": {"lr": 1e-2, "micro_batch_size": 5, "weight_decay": 0.1},
            "distributed": kind,
            "run": {"dir": str(folder / f"{head}-{kind}"), "steps": STEPS},
        }
    )


def train(config, ranks, interrupts, recorded):
    """Losses, weights, and the share of them that this rank holds."""
    session = prepare(config)
    for model in (session.models.student, session.models.teacher):
        model.model.double()
    Path(config.run.dir).mkdir(exist_ok=True)
    run = Run(Path(config.run.dir), writes=ranks.first)
    trainer = Trainer(config, run, session, lambda record: None, interrupts, ranks)
    if not recorded:
        recorded += [trainer.sample(trainer.prompts_of(step), step) for step in range(STEPS)]
    for rollouts in recorded:
        trainer.update(rollouts)
    held = sum(part.numel() for part in own_parts(session.models.student))
    weights = {
        name: whole_tensor(parameter.detach())
        for name, parameter in session.models.student.model.named_parameters()
    }
    losses = torch.tensor([step["loss"] for step in trainer.steps])
    return losses, weights, held / sum(p.numel() for p in weights.values())


def main(folder):
    told = {}
    alone = {}
    for head in OBJECTIVES:
        recorded = []
        losses, weights, _ = train(settings(folder, head, "none"), ALONE, Interrupts(), recorded)
        alone[head] = (recorded, losses, weights)
    ddp = settings(folder, "tied", "ddp").distributed
    with Interrupts() as interrupts, joined(ddp, interrupts) as (ranks, _):
        for kind in ("ddp", "fsdp2"):
            for head, (recorded, expected, before) in alone.items():
                config = settings(folder, head, kind)
                losses, weights, held = train(config, ranks, interrupts, recorded)
                apart = max(float((weights[n] - before[n]).abs().max()) for n in before)
                told[f"{kind} {head}"] = {
                    "losses": float((losses - expected).abs().max()),
                    "moved": float(expected.std()),
                    "weights": apart,
                    "held": held,
                    "steps": len(losses),
                }
        if ranks.first:
            (folder / "result.json").write_text(json.dumps(told))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    main(place)
