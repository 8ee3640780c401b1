"""Gradient alignment with a teacher, or a student, behind a server."""

import json
import shutil

import numpy as np
import pytest
import torch

from helpers import read_jsonl
from tutelage import align
from tutelage.alignment.bench import conclude, plant
from tutelage.alignment.growing import grow
from tutelage.alignment.job import prepare_bench
from tutelage.alignment.nodes import REST, look
from tutelage.config import ModelConfig, parse_config
from tutelage.data.collate import collate
from tutelage.diagnose.checking import check
from tutelage.errors import UsageError
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.models.loading import load_model
from tutelage.training import train

FROM_A_LIST = {"type": "top_k", "support": "teacher", "k": 4}
COMPATIBLE = load_model(ModelConfig(path=str(model_path("compatible"))), "teacher")
FORWARD = {"type": "full", "divergence": "forward_kl"}


@pytest.fixture
def settings(tmp_path):
    rows = [
        {"id": p.id, "messages": [{"role": "user", "content": p.question}], "answer": p.answer}
        for p in EMBEDDED_SPEC.task.eval_prompts(24, seed=3)
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**sections):
        tree = {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {"prompts": str(prompts), "verifier": VERIFIER.model_dump()},
            "rollout": {"max_new_tokens": 28, "batch_size": 64},
            "objective": FROM_A_LIST,
        }
        tree["align"] = {"questions": 5, "spines": 2, "samples": 6, "budget": 6000, "rollouts": 4}
        tree["align"]["objectives"] = {"forward_kl": FORWARD}
        for name, section in sections.items():
            merged = name not in ("objective", "teacher")
            tree[name] = {**tree.get(name, {}), **section} if merged else section
        return parse_config(tree)

    return make


@pytest.fixture
def teacher(serve):
    def start(which="compatible", **abilities):
        fake = serve(model_path(which), max_model_len=128, **abilities)
        return {"path": str(model_path(which)), "server": {"url": fake.url, "retries": 0}}

    return start


def answers(config):
    bench = prepare_bench(config)
    tree = plant(bench)
    records = [{"unit": branch.name, **r} for branch, r in grow(bench, tree, tree.branches)]
    return tree, conclude(bench, tree, records, draws=100)


def numbers(found):
    return {
        key: [pooled.dot.value, pooled.advantage.value, pooled.square, pooled.move_square]
        for key, pooled in found.pooled.items()
    }


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_server_that_gives_all_is_aligned_as_the_model_in_process(settings, teacher, temperature):
    objectives = {"objectives": {"reverse_kl": {"type": "full"}, "forward_kl": FORWARD}}
    given = {"objective": {"type": "sampled"}, "align": objectives}
    given["rollout"] = {"temperature": temperature}
    here_tree, here = answers(settings(**given))
    there_tree, there = answers(settings(**given, teacher=teacher(max_logprobs=-1)))
    assert [n.children for n in there_tree.nodes] == [n.children for n in here_tree.nodes]
    assert there_tree.rollouts == here_tree.rollouts
    for key, values in numbers(here).items():
        assert numbers(there)[key] == pytest.approx(values, abs=1e-6), key


def enumerated(bench, spine):
    """p and q [T, V] of all states of a spine, from the models themselves."""
    batch = collate([spine.rollout])
    with torch.no_grad():
        return [
            model.head.logits(model.hidden(batch)).double().softmax(-1).numpy()
            for model in (bench.student, COMPATIBLE)
        ]


@pytest.mark.parametrize("scores_ids", [False, True])
def test_from_a_list_children_are_what_the_server_says_and_the_rest_is_known(
    settings, teacher, scores_ids
):
    support = {**FROM_A_LIST, "support": "union"} if scores_ids else FROM_A_LIST
    listed, least = (4, 0.1) if scores_ids else (5, 0.005)
    bench = prepare_bench(
        settings(
            teacher=teacher(max_logprobs=listed, scores_ids=scores_ids),
            objective=support,
            align={"least": least},
        )
    )
    whole = prepare_bench(settings(objective=support, align={"least": least}))
    spines = list(plant(bench).spines.values())[:6]
    lumped = 0
    for bench_states, spine in zip(
        look(bench.student, bench.candidates, bench.objectives, spines, least), spines, strict=True
    ):
        p, q = enumerated(bench, spine)
        for state in bench_states:
            tokens = [c for c in state.children if c != REST]
            own, target = q[state.depth], spine.rollout.completion_ids[state.depth]
            likely = set(np.argsort(-own)[:listed])
            if not scores_ids:
                assert set(tokens) <= likely | {target}
            wanted = {int(v) for v in np.flatnonzero((p[state.depth] >= least) | (own >= least))}
            lumped += len(wanted - set(tokens))
            # Every number is the model's own, on the children and on all others together.
            for side, full in ((state.p, p[state.depth]), (state.q[0], own)):
                expected = full[tokens]
                if REST in state.children:
                    expected = np.append(expected, 1 - expected.sum())
                assert side == pytest.approx(expected / expected.sum(), abs=1e-5)
            for move, given in zip(whole.objectives.values(), state.moves[0], strict=True):
                full = move(p[state.depth][None], own[None])[0]
                expected = full[tokens]
                if REST in state.children:
                    expected = np.append(expected, full.sum() - expected.sum())
                # float32 leaves little of a tail's mass that is nearly 0, and of its logarithm.
                assert given == pytest.approx(expected, abs=2e-3)
            assert state.teacher_entropies == (None,)
    # Five of the teacher's do not hold all that the student likes; asked ids do.
    assert (lumped == 0) == scores_ids


def test_a_second_teacher_shares_the_tree_of_one_at_a_server(settings, teacher):
    other = {"other": {"path": str(model_path("same_data"))}}
    tree, found = answers(settings(teacher=teacher(max_logprobs=6), align={"teachers": other}))
    assert {name for name, _ in found.pooled} == {"teacher", "other"}
    assert all(np.isfinite(node.q).all() for node in tree.nodes)
    assert all(0.5 < share <= 1 for share in found.teacher_covered.values())
    assert all(n.teacher_entropies[0] is None and n.teacher_entropies[1] >= 0 for n in tree.nodes)


def test_what_the_uncovered_mass_may_hide_is_bounded_by_it(settings):
    """The advantage with every token apart differs by no more than the teacher's mass elsewhere."""
    bench = prepare_bench(settings(objective={"type": "full"}, align={"least": 0.3}))
    tree = plant(bench)
    rng = np.random.default_rng(0)
    for node in tree.nodes:
        p, q = (side[node.depth] for side in enumerated(bench, tree.spines[node.spine]))
        tokens = [c for c in node.children if c != REST]
        others = np.setdiff1d(np.arange(len(p)), tokens)
        s = rng.integers(0, 2, len(p)).astype(float)
        s_rest = (p[others] * s[others]).sum() / p[others].sum()
        lumped = ((q - p)[tokens] * s[tokens]).sum()
        lumped += (q[others].sum() - p[others].sum()) * s_rest
        assert abs(((q - p) * s).sum() - lumped) <= q[others].sum() + 1e-9


@pytest.mark.parametrize(
    ("sections", "told"),
    [
        ({"objective": {"type": "full"}}, r"objective\.type full.*--max-logprobs 32"),
        ({"objective": {"type": "sampled"}}, r"mean of objective\.type sampled"),
        ({"objective": {**FROM_A_LIST, "k": 9}}, r"objective\.k is 9.*--max-logprobs 9"),
        ({"objective": {**FROM_A_LIST, "support": "student"}}, "support student needs"),
        ({"rollout": {"temperature": 0.7}}, r"rollout\.temperature is 0\.7"),
        (
            {"align": {"objectives": {"reverse": {"type": "full"}}}},
            r"align\.objectives\.reverse: .*or leave it out",
        ),
    ],
)
def test_objectives_that_need_more_than_a_list_are_refused_by_name(
    settings, teacher, tmp_path, sections, told
):
    with pytest.raises(UsageError, match=told):
        align(settings(**sections, teacher=teacher(max_logprobs=8)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_table_by_the_teachers_entropy_is_written_where_it_is_not_known(
    settings, teacher, tmp_path
):
    align(settings(teacher=teacher(max_logprobs=8)), tmp_path / "out")
    assert not (tmp_path / "out" / "reliability.json").exists()
    told = json.loads((tmp_path / "out" / "alignment.json").read_text())
    assert 0 < told["teachers"]["teacher"]["covered"] <= 1


def test_a_served_student_draws_every_rollout_the_same_each_time(settings, serve, tmp_path):
    copy = shutil.copytree(model_path("student"), tmp_path / "copy")
    fake = serve(copy, max_model_len=128)
    student = {
        "path": str(model_path("student")),
        "server": {"url": fake.url, "weights": str(copy), "tolerance": 1e-3},
    }
    bench = prepare_bench(settings(student=student))
    tree = plant(bench)
    asked = fake.count("/v1/completions")
    assert asked >= tree.natural
    records = [{"unit": b.name, **r} for b, r in grow(bench, tree, tree.branches[:3])]
    assert fake.count("/v1/completions") - asked >= sum(b.rollouts for b in tree.branches[:3])
    again = [{"unit": b.name, **r} for b, r in grow(bench, tree, tree.branches[:3])]
    assert again == records
    own = prepare_bench(settings())
    local = [{"unit": b.name, **r} for b, r in grow(own, tree, tree.branches[:3])]
    assert [r["unit"] for r in local] == [r["unit"] for r in records]
    assert local != records  # its draws are its own


def test_a_probe_switches_to_a_teacher_at_a_server_and_a_resumed_run_agrees(
    settings, teacher, tmp_path
):
    def config(folder, steps):
        return settings(
            teacher={"path": str(model_path("incompatible"))},
            rollout={"max_new_tokens": 28, "prompts_per_step": 4},
            data={"held_out": 8},
            optimizer={"lr": 1e-3},
            evaluation={"every": 0},
            align={
                "questions": 8,
                "samples": 4,
                "teachers": {"good": good},
                "probe": {
                    "every": 1,
                    "questions": 8,
                    "budget": 9000,
                    "policy": "switch_teacher",
                },
            },
            run={"dir": str(tmp_path / folder), "steps": steps, "save_every": 1},
        )

    good = teacher(max_logprobs=8)
    train(config("cut", 1))
    train(config("cut", 2), resume=True)
    train(config("whole", 2))
    records = [
        [
            {k: v for k, v in r.items() if "perf" not in k}
            for r in read_jsonl(tmp_path / folder / "metrics.jsonl")
        ]
        for folder in ("cut", "whole")
    ]
    probes = [[r for r in part if r["kind"] == "probe"] for part in records]
    assert probes[0] == probes[1]
    assert probes[0][0]["alignment/next_teacher"] == "good"
    trained = [[r["loss"] for r in part if r["kind"] == "train"] for part in records]
    assert trained[0] == trained[1]


def test_check_judges_a_served_teacher_as_the_model_in_process(settings, teacher):
    small = {"questions": 12, "samples": 3, "continued": 4, "continuations": 2, "budget": 8000}
    local, served = (
        check(settings(check=small, objective=objective, **where)).looks[0]
        for objective, where in (
            (FROM_A_LIST, {}),
            (FROM_A_LIST, {"teacher": teacher(max_logprobs=40)}),
        )
    )
    assert served.verdict.word == local.verdict.word
    assert served.capability["accuracy"] == pytest.approx(local.capability["accuracy"])
    assert served.agreement["overlap/mass_student"] == pytest.approx(
        local.agreement["overlap/mass_student"], abs=1e-4
    )
    assert [part.teacher for part in served.rescue] == [part.teacher for part in local.rescue]
    assert served.alignment["advantage"]["value"] == pytest.approx(
        local.alignment["advantage"]["value"], abs=1e-3
    )
