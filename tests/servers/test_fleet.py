"""Several servers of one model: the least busy is asked, a dead one is left out and comes back."""

import shutil
import threading
import time

import fake as f
import pytest
import torch

from helpers import read_jsonl
from tutelage.config import ServerConfig
from tutelage.errors import ServerError, UsageError
from tutelage.models.served import fleet as fleets
from tutelage.models.served.fleet import Fleet
from tutelage.models.served.server import Server
from tutelage.session import prepare
from tutelage.training import train
from tutelage.types import SamplingParams

SCORING = "/v1/completions"
MANY = 24


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Servers that are out are looked at again at once."""
    monkeypatch.setattr(fleets, "LOOK_AGAIN_S", 0.05)


@pytest.fixture
def two(serve, gpt2_pair):
    return [serve(gpt2_pair[1], max_logprobs=-1, name=f"teacher-{i}") for i in range(2)]


def fleet(fakes, **settings) -> Fleet:
    made = Fleet(ServerConfig(url=[fake.url for fake in fakes], retries=3, **settings), "teacher")
    fingerprint = made.fingerprint(312)
    made.prove = lambda server: server.require_same(
        fingerprint, server.score([fingerprint.sequence], 0)[0].sampled
    )
    return made


def sequences():
    return [[(7 * i + k) % 300 for k in range(6)] for i in range(MANY)]


def scored(server, items):
    return server.map(lambda one, ids: one.score([ids], 2)[0].sampled.tolist(), items)


def own_of(fake):
    """Requests for one of the sequences above, not for a fingerprint."""
    return [body for path, body in fake.asked if path == SCORING and len(body["prompt"][0]) == 6]


def test_requests_are_shared_by_load_and_each_is_answered_as_by_one_server(two):
    together = fleet(two)
    alone = Server(ServerConfig(url=two[0].url), "teacher")
    expected = [alone.score([ids], 2)[0].sampled.tolist() for ids in sequences()]
    before = [len(own_of(fake)) for fake in two]
    assert scored(together, sequences()) == expected
    took = [len(own_of(fake)) - b for fake, b in zip(two, before, strict=True)]
    assert sum(took) == MANY  # each exactly once
    assert min(took) >= MANY // 4
    # A server that is slow has requests under way, so the other is asked.
    two[0].faults[SCORING] = [f.slow(1.0)]
    begin = len(own_of(two[0]))
    scored(fleet(two, max_in_flight=1), sequences()[:12])
    assert len(own_of(two[0])) - begin <= 6


def test_a_server_killed_in_the_middle_costs_no_answer_and_doubles_none(two):
    together = fleet(two)
    alone = Server(ServerConfig(url=two[0].url), "teacher")
    expected = [alone.score([ids], 2)[0].sampled.tolist() for ids in sequences()]
    killed = threading.Event()

    def ask(server, ids):
        if ids == sequences()[MANY // 3]:
            two[1].kill()
            killed.set()
        return ids, server.score([ids], 2)[0].sampled.tolist()

    found = together.map(ask, sequences())
    assert killed.is_set()
    assert found == list(zip(sequences(), expected, strict=True))
    assert together.up() == {two[0].url}
    assert any("left out" in text and two[1].url in text for text in together.take_events())


def test_a_server_comes_back_once_it_answers_and_is_the_same_model(two, serve, gpt2_pair):
    together = fleet(two)
    two[1].kill()
    scored(together, sequences())
    assert together.up() == {two[0].url}
    other = serve(gpt2_pair[1], max_logprobs=-1, name="teacher-1", port=two[1].port)
    with torch.no_grad():
        other.model.lm_head.weight.mul_(1.5)
    time.sleep(0.1)
    scored(together, sequences())
    assert together.up() == {two[0].url}  # it answers, and is another model
    assert "another model" in together.members[1].out
    other.reload()
    together.take_events()
    time.sleep(0.1)
    scored(together, sequences())
    assert together.up() == {two[0].url, two[1].url}
    assert any("is back" in text for text in together.take_events())


def test_where_all_are_dead_the_error_names_them_at_its_deadline(two):
    together = fleet(two, timeout_s=0.5)
    for fake in two:
        fake.kill()
    began = time.monotonic()
    with pytest.raises(ServerError, match="none of the 2 servers of the teacher") as caught:
        scored(together, sequences())
    assert time.monotonic() - began < 10
    assert caught.value.exit_code == 6
    for fake in two:
        assert fake.url in str(caught.value)


def test_all_wait_for_the_first_that_comes_back(two, serve, gpt2_pair):
    together = fleet(two, timeout_s=20)
    for fake in two:
        fake.kill()
    found = []
    waiting = threading.Thread(target=lambda: found.extend(scored(together, sequences())))
    waiting.start()
    time.sleep(0.3)
    serve(gpt2_pair[1], max_logprobs=-1, name="teacher-0", port=two[0].port)
    waiting.join(20)
    assert len(found) == MANY


def test_a_question_that_every_server_refuses_is_asked_once(two):
    together = fleet(two)
    begin = sum(fake.count(SCORING) for fake in two)
    with pytest.raises(ServerError, match="out of vocabulary"):
        together.score([[9999, 1]], 2)
    assert sum(fake.count(SCORING) for fake in two) - begin == 1
    assert len(together.up()) == 2


def test_servers_of_different_models_are_refused_at_the_start(serve, gpt2_pair, settings, tmp_path):
    fakes = [serve(gpt2_pair[1], max_logprobs=-1) for _ in range(2)]
    with torch.no_grad():
        fakes[1].model.lm_head.weight.mul_(1.01)
    server = {"url": [fake.url for fake in fakes]}
    with pytest.raises(ServerError, match="do not serve the same model"):
        prepare(settings(teacher={"path": str(gpt2_pair[1]), "server": server}))
    with pytest.raises(UsageError, match="stands twice"):
        settings(teacher={"path": str(gpt2_pair[1]), "server": {"url": [fakes[0].url] * 2}})
    with pytest.raises(UsageError, match="the list is empty"):
        settings(teacher={"path": str(gpt2_pair[1]), "server": {"url": []}})


def test_a_run_goes_on_with_one_of_its_servers_killed_and_learns_the_same(
    two, settings, gpt2_pair, tmp_path
):
    server = {"url": [fake.url for fake in two], "retries": 3}
    teacher = {"path": str(gpt2_pair[1]), "server": server}
    changes = {"steps": 3, "save_every": 0}
    disturbed = settings(teacher=teacher, run={**changes, "dir": str(tmp_path / "disturbed")})

    def kill(record):
        if record["kind"] == "train" and record["step"] == 1:
            two[0].kill()

    train(disturbed, observer=kill)
    events = read_jsonl(tmp_path / "disturbed" / "events.jsonl")
    (told,) = [e for e in events if e["event"] == "server_balance"]
    assert two[0].url in told["text"]
    local = settings(run={**changes, "dir": str(tmp_path / "local")})
    train(local)
    losses = [
        [r["loss"] for r in read_jsonl(tmp_path / name / "metrics.jsonl") if r["kind"] == "train"]
        for name in ("disturbed", "local")
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_weights_go_to_every_server_of_the_student_and_to_one_that_comes_back(
    serve, settings, gpt2_pair, tmp_path
):
    shutil.copytree(gpt2_pair[0], tmp_path / "served")
    fakes = [serve(tmp_path / "served") for _ in range(2)]
    server = {
        "url": [fake.url for fake in fakes],
        "weights": str(tmp_path / "served"),
        "retries": 3,
        "timeout_s": 20,
    }
    config = settings(student={"path": str(gpt2_pair[0]), "server": server})
    session = prepare(config)
    student, params = session.sampler, SamplingParams(max_new_tokens=10)
    reloads = lambda: [fake.count("/collective_rpc") for fake in fakes]  # noqa: E731
    before = reloads()
    prompts = session.prompts[:8]
    first = student.sample(prompts, params, seed=0, step=0)
    assert [b - a for a, b in zip(before, reloads(), strict=True)] == [1, 1]
    assert min(len([p for p, b in fake.asked if b and b.get("seed")]) for fake in fakes) > 0

    fakes[1].kill()
    again = student.sample(prompts, params, seed=0, step=0)
    assert [r.completion_ids for r in again] == [r.completion_ids for r in first]
    assert student.server.up() == {fakes[0].url}

    with torch.no_grad():
        session.models.student.model.lm_head.weight.mul_(1.2)
    session.models.student.policy_step = 1
    student.sample(prompts, params, seed=0, step=1)
    fakes.append(serve(tmp_path / "served", port=fakes[1].port))
    with torch.no_grad():
        fakes[2].model.lm_head.weight.add_(1.0)  # it comes up with weights of its own
    time.sleep(0.1)
    student.sample(prompts, params, seed=0, step=2)
    assert student.server.up() == {fakes[0].url, fakes[2].url}
    assert fakes[2].count("/collective_rpc") == 1
    assert student.is_in_step()
