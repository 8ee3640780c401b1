"""The real thing: vLLM on this machine, with the embedded pair.

make test-vllm
"""

import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from launch import vllm_server

from helpers import read_jsonl
from tutelage.alignment.bench import conclude, plant
from tutelage.alignment.growing import grow
from tutelage.alignment.job import prepare_bench
from tutelage.config import Config, parse_config
from tutelage.gradient import measure
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.session import prepare
from tutelage.training import train
from tutelage.types import SamplingParams

# Given by name it must be there; else these tests are left out where it is not.
GIVEN = os.environ.get("TUTELAGE_VLLM_PYTHON")
PYTHON = Path(GIVEN or ".venv-vllm/bin/python")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not GIVEN and not PYTHON.exists(), reason=f"no vLLM: {PYTHON} does not exist"
    ),
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("vllm")


@pytest.fixture(scope="module")
def copy(folder):
    return shutil.copytree(model_path("student"), folder / "student")


@pytest.fixture(scope="module")
def teacher_url(folder):
    flags = ("--max-logprobs", "-1")
    with vllm_server(
        PYTHON, model_path("compatible"), "teacher", free_port(), folder / "teacher.log", *flags
    ) as url:
        yield url


@pytest.fixture(scope="module")
def student_url(folder, copy):
    with vllm_server(PYTHON, copy, "student", free_port(), folder / "student.log") as url:
        yield url


@pytest.fixture
def settings(tmp_path):
    from tutelage.lab.tasks import write_prompts

    prompts = tmp_path / "prompts.jsonl"
    write_prompts(prompts, EMBEDDED_SPEC.task.train_prompts(120, 0))

    def make(**sections) -> Config:
        tree = {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {
                "prompts": str(prompts),
                "held_out": 20,
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": 32, "max_new_tokens": 28},
            "objective": {"k": 4},
            "optimizer": {"lr": 1e-3},
            "evaluation": {"every": 0},
            "run": {"dir": str(tmp_path / "run"), "steps": 3},
        }
        for name, section in sections.items():
            tree[name] = {**tree.get(name, {}), **section}
        return parse_config(tree)

    return make


def served_teacher(url):
    return {"path": str(model_path("compatible")), "server": {"url": url}}


def served_student(url, copy):
    return {"path": str(model_path("student")), "server": {"url": url, "weights": str(copy)}}


def test_local_and_served_teacher_agree_to_1e_4_nats_a_token(settings, teacher_url):
    there, here = prepare(settings(teacher=served_teacher(teacher_url))), prepare(settings())
    rollouts = here.models.student.sample(
        here.prompts[:32], SamplingParams(max_new_tokens=28), seed=0, step=0
    )
    tables = [
        measure(s.models, rollouts, micro_batch_size=16, overlap_k=4)[0] for s in (there, here)
    ]
    for key in ("teacher_logprob", "kl/reverse", "kl/forward", "entropy/teacher"):
        assert torch.allclose(tables[0][key], tables[1][key], atol=1e-4), key
    assert torch.equal(tables[0]["overlap/ratio"], tables[1]["overlap/ratio"])


def test_what_a_cpu_server_can_do_is_what_docs_say(settings, teacher_url, student_url):
    capabilities = prepare(
        settings(teacher=served_teacher(teacher_url))
    ).models.teacher.capabilities
    assert capabilities.max_logprobs == 32
    assert capabilities.weight_sync
    assert not capabilities.token_ids


def test_a_server_of_few_log_probabilities_serves_the_teachers_own_support(settings, student_url):
    # The default --max-logprobs is 20, and the vocabulary has 32 tokens.
    server = {"path": str(model_path("student")), "server": {"url": student_url}}
    objective = {"support": "teacher", "k": 4}
    session = prepare(settings(teacher=server, objective=objective))
    assert session.models.teacher.question.listed == 5
    rollouts = session.models.student.sample(
        session.prompts[:16], SamplingParams(max_new_tokens=28), seed=0, step=0
    )
    table, _ = measure(session.models, rollouts, micro_batch_size=16, overlap_k=4)
    assert table["kl/bucketed"].all()
    assert table["reward/mean"].abs().max() < 1e-4  # the student scores itself
    assert table["kl/reverse"].abs().max() < 1e-4


def test_sampling_is_the_students_own_and_its_draws_are_keyed(settings, student_url, copy):
    session = prepare(settings(student=served_student(student_url, copy)))
    params, key = SamplingParams(max_new_tokens=28), {"seed": 1, "step": 2}
    drawn = session.sampler.sample(session.prompts[:8], params, group_size=2, **key)
    again = session.sampler.sample(session.prompts[3:4], params, group_size=2, **key)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in drawn[6:8]]
    assert len({r.completion_ids for r in drawn}) > 8
    greedy = SamplingParams(max_new_tokens=28, temperature=0.0)
    there, here = (
        sampler.sample(session.prompts[:8], greedy, group_size=1, **key)
        for sampler in (session.sampler, session.models.student)
    )
    assert [r.completion_ids for r in there] == [r.completion_ids for r in here]
    assert [r.finish_reason for r in there] == [r.finish_reason for r in here]


def test_three_training_steps_with_both_sides_served(
    settings, teacher_url, student_url, copy, tmp_path
):
    result = train(
        settings(teacher=served_teacher(teacher_url), student=served_student(student_url, copy))
    )
    assert result.step == 3
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["server/syncs"] for r in records] == [1, 0, 1, 1, 1]
    for record in records:
        assert record["rollout/drift_k3"] < 1e-8
        assert record["server/stale_rollouts"] == 0


def test_a_student_server_started_on_another_folder_is_found_out(
    settings, student_url, copy, tmp_path
):
    from tutelage.errors import ServerError

    other = shutil.copytree(copy, tmp_path / "other")
    with pytest.raises(ServerError, match="after a sync"):
        train(settings(student=served_student(student_url, other), optimizer={"lr": 0.05}))


def test_a_real_served_teacher_is_aligned_as_the_one_in_process(settings, teacher_url):
    """Same tree, same draws: only the server's rounding can differ."""
    found = []
    for teacher in ({"path": str(model_path("compatible"))}, served_teacher(teacher_url)):
        align = {"questions": 8, "spines": 2, "samples": 6, "budget": 8000, "rollouts": 4}
        bench = prepare_bench(settings(teacher=teacher, align=align))
        tree = plant(bench)
        records = [{"unit": b.name, **r} for b, r in grow(bench, tree, tree.branches)]
        found.append((tree, records, conclude(bench, tree, records, draws=100).pooled))
    (here_tree, here_records, here), (there_tree, there_records, there) = found
    assert there_tree.rollouts == here_tree.rollouts
    assert there_records == here_records
    for key, local in here.items():
        for name in ("dot", "advantage"):
            value = getattr(local, name).value
            assert getattr(there[key], name).value == pytest.approx(value, abs=1e-3)
        assert there[key].square == pytest.approx(local.square, abs=1e-3)
        assert there[key].move_square == pytest.approx(local.move_square, abs=1e-3)


def test_vllm_serves_the_finished_student_as_it_is_here(settings, tmp_path):
    from tutelage.cli import main

    result = train(settings(optimizer={"lr": 0.01}))
    log, prompts = tmp_path / "finished.log", str(tmp_path / "prompts.jsonl")
    words = ["eval", str(result.student), "--prompts", prompts, "--samples", "1"]
    words += ["--temperature", "0", "--max-new-tokens", "28"]
    words += ["--verifier", f"pattern:{VERIFIER.pattern}", "--output"]
    assert main([*words, str(tmp_path / "here.jsonl")]) == 0
    with vllm_server(PYTHON, result.student, "finished", free_port(), log) as url:
        assert main([*words, str(tmp_path / "there.jsonl"), "--server", url]) == 0
    here, there = (
        [[sample["text"] for sample in row["samples"]] for row in read_jsonl(tmp_path / name)]
        for name in ("here.jsonl", "there.jsonl")
    )
    same = [a == b for a, b in zip(here, there, strict=True)]
    assert len(same) == 120
    assert sum(same) >= 118  # two likeliest tokens may be as likely, but for rounding
