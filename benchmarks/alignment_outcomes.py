"""Is a teacher better aligned on wrong rollouts than on right ones, as 2605.10889 reports?

    python benchmarks/alignment_outcomes.py embedded --output runs/outcomes   # resumes
    python benchmarks/alignment_outcomes.py mod-total --models DIR --output runs/outcomes
    python benchmarks/alignment_outcomes.py smollm2 --models DIR --output runs/outcomes

DIR of `mod-total` is what `tutelage.lab.embedded.build` wrote for `PairSpec(task=ModTotal())`, that
of `smollm2` what recipes/smollm2/prepare.py wrote. The embedded tasks know the first error of a
wrong rollout, so its nodes are also told apart as up to the first error, and after it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tutelage.lab.tasks import Task
    from tutelage.types import Prompt

GROUPS = ("right", "wrong", "wrong, up to the error", "wrong, after it")
PAIRS = (("wrong", "right"), ("wrong, up to the error", "right"), GROUPS[2:])
# 20 rollouts of each child: what the published estimator asks for.
LAB = {"samples": 8, "spines": 4, "rollouts": 20, "floor": 20, "objectives": {}}
CHAIN_SUM = "reasoning_gym:chain_sum?size=96&seed=77&max_terms=3&max_digits=2"


def lab_settings(
    folder: Path, task: "Task", models: Path, seed: int, questions: int, budget: int
) -> dict[str, Any]:
    """An alignment of three teachers on held-out problems."""
    from tutelage.lab.tasks import write_prompts

    write_prompts(folder / "prompts.jsonl", task.eval_prompts(questions, seed=200 + seed))
    return {
        "student": {"path": str(models / "student")},
        "teacher": {"path": str(models / "compatible")},
        "data": {
            "prompts": str(folder / "prompts.jsonl"),
            "verifier": task.verifier.model_dump(mode="json"),
        },
        "rollout": {"max_new_tokens": task.longest_solution, "batch_size": 1024},
        "align": {
            **LAB,
            "questions": questions,
            "budget": budget,
            "teachers": {
                name: {"path": str(models / name)} for name in ("same_data", "incompatible")
            },
        },
        "run": {"seed": seed},
    }


def smollm2_settings(
    folder: Path, models: Path, seed: int, questions: int, budget: int
) -> dict[str, Any]:
    """Self-teachers that see the answer or a demonstration, on sums that are sometimes solved."""
    from tutelage.lab.tasks import write_prompts

    tree: dict[str, Any] = {
        "student": {"path": str(models / "smollm2")},
        "teacher": {"path": str(models / "smollm2-arithmetic")},
        "data": {"prompts": str(folder / "prompts.jsonl"), "verifier": "numeric"},
        "rollout": {"max_new_tokens": 24, "batch_size": 128},
        "align": {
            "samples": 8,
            "spines": 2,
            "rollouts": 8,
            "objectives": {},
            "questions": questions,
            "budget": budget,
            "contexts": ["answer", "demonstration"],
        },
        "run": {"seed": seed},
    }
    if not (folder / "prompts.jsonl").exists():
        write_prompts(folder / "prompts.jsonl", sometimes_solved(tree, questions))
    return tree


def sometimes_solved(tree: dict[str, Any], count: int) -> list["Prompt"]:
    """Questions that the student solved in some of 4 samples, which are drawn for this alone."""
    from tutelage.config import ModelConfig, PromptFormat, parse_config
    from tutelage.data.prompts import load_prompts
    from tutelage.data.render import render
    from tutelage.data.verify import make_verifier
    from tutelage.evaluation import evaluate
    from tutelage.models.loading import load_model
    from tutelage.types import Message, SamplingParams

    config = parse_config(tree)
    student = load_model(ModelConfig(path=tree["student"]["path"]), "student")
    prompts = [
        replace(p, messages=(Message(role="user", content=p.question),), text="")
        for p in load_prompts(CHAIN_SUM)
    ]
    rendered, _ = render(prompts, student.tokenizer, PromptFormat(), 128)
    verify = make_verifier(config.data.verifier)
    params = SamplingParams(max_new_tokens=config.rollout.max_new_tokens)
    found = evaluate(student, rendered, verify, params, samples=4, seed=1, step=-1)
    print("accuracy of the screened questions", float(np.mean(found.accuracies)), flush=True)
    chosen = [
        prompt for prompt, rate in zip(prompts, found.accuracies, strict=True) if 0 < rate < 1
    ]
    return chosen[:count]


def report(folder: Path, config: Any, task: "Task | None") -> str:
    """Tables of every teacher by outcome, from the files of an alignment."""
    from tutelage.alignment.measured import gather, node_scores
    from tutelage.alignment.plan import plan_of
    from tutelage.alignment.published import published_nodes
    from tutelage.alignment.tree import load_tree
    from tutelage.data.prompts import load_prompts
    from tutelage.ops.alignment.pooling import compare_groups, pool
    from tutelage.runs.ledger import Ledger

    prompts = {prompt.id: prompt for prompt in load_prompts(config.data.prompts)}
    tree = load_tree(folder, prompts)
    nodes = gather(tree, Ledger(folder / "rollouts.jsonl").records)
    labels = {"right": nodes.right, "wrong": ~nodes.right}
    if task is not None:
        late = [is_after_error(task, tree.spines[n.spine], n.depth) for n in nodes.states]
        after = np.array(late)
        labels |= {GROUPS[2]: ~nodes.right & ~after, GROUPS[3]: ~nodes.right & after}
    lines = [str(plan_of(tree))]
    columns = ("A", "dot x 1000", "advantage", "mean cosine", "published cosine", "nodes")
    for c, teacher in enumerate(tree.teachers):
        scores, rows = node_scores(nodes, c, 0)
        published = replace(scores, cosine=published_nodes(tree, nodes, c)[rows])
        questions, weights = [nodes.questions[i] for i in rows], nodes.weights[rows]
        lines += ["", f"| {teacher} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        members = {name: label[rows] for name, label in labels.items() if label[rows].any()}
        for name, here in members.items():
            kept = np.flatnonzero(here)
            owners = [questions[i] for i in kept]
            found = [pool(values[kept], owners, weights[kept]) for values in (scores, published)]
            lines.append(f"| {name} | {' | '.join(cells(*found))} | {len(kept)} |")
        for name, base in PAIRS:
            if name in members and base in members:
                pair = members[name], members[base]
                gaps = [
                    compare_groups(values, questions, weights, *pair)
                    for values in (scores, published)
                ]
                lines.append(f"| {name} - {base} | {' | '.join(cells(*gaps))} | |")
    return "\n".join(lines)


def cells(ours: Any, published: Any) -> list[str]:
    """Numbers with their intervals; the last from the published estimator."""
    return [
        told(ours.alignment),
        told(ours.dot, 1000),
        told(ours.advantage),
        told(ours.mean_cosine),
        told(published.mean_cosine),
    ]


def told(estimate: Any, times: float = 1) -> str:
    """A number with its interval."""
    if estimate is None:
        return "-"
    digits = 2 if times > 1 else 3
    value = f"{times * estimate.value:.{digits}f}"
    if estimate.interval is None:
        return value
    low, high = (f"{times * end:.{digits}f}" for end in estimate.interval)
    return f"{value} [{low}, {high}]"


def is_after_error(task: "Task", spine: Any, depth: int) -> bool:
    """Whether a state comes after the first error of its rollout."""
    rollout = spine.rollout
    error = task.first_error(task.problem_of(rollout.prompt), rollout.completion_ids)
    return error is not None and depth > error


def main(words: Sequence[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pair", choices=("embedded", "mod-total", "smollm2"))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--budget", type=int, default=600_000)
    arguments = parser.parse_args(words)

    import torch

    from tutelage.alignment.job import align
    from tutelage.config import parse_config
    from tutelage.lab.embedded import EMBEDDED_SPEC, ZOO
    from tutelage.lab.tasks import ModTotal

    torch.set_num_threads(1)
    folder = arguments.output / f"{arguments.pair}-{arguments.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"seed": arguments.seed, "questions": arguments.questions, "budget": arguments.budget}
    task: Task | None = None
    if arguments.pair == "smollm2":
        tree = smollm2_settings(folder, arguments.models, **sizes)
    else:
        task = EMBEDDED_SPEC.task if arguments.pair == "embedded" else ModTotal()
        tree = lab_settings(folder, task, arguments.models or ZOO, **sizes)
    config = parse_config(tree)
    align(config, folder / "align", resume=(folder / "align").exists())
    print(report(folder / "align", config, task))


if __name__ == "__main__":
    main()
