"""Every fault of a server is a clear error or a counted retry, never a silent zero."""

import math
import time

import fake as f
import pytest

from tutelage.config import ServerConfig, parse_config
from tutelage.errors import ServerError, UsageError
from tutelage.models.served.server import Server
from tutelage.types import SamplingParams

SCORING = "/v1/completions"
IDS = (5, 9, 31, 4, 77)


@pytest.fixture
def fake(serve, gpt2_pair):
    return serve(gpt2_pair[1], max_logprobs=20)


def connect(url, **settings):
    return Server(ServerConfig(url=url, **{"timeout_s": 5, "retries": 2, **settings}), "teacher")


# --- faults that pass ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [f.status(429), f.status(500), f.status(503), f.dropped, f.content(b"<html>no JSON")],
    ids=["429", "500", "503", "dropped", "no JSON"],
)
def test_a_fault_that_passes_is_retried_counted_and_changes_nothing(fake, fault):
    server = connect(fake.url)
    good = server.score([IDS], 3)[0]
    fake.faults[SCORING] = [fault]
    again = server.score([IDS], 3)[0]
    assert (again.sampled == good.sampled).all()
    assert len(server.client.take_retried()) == 1
    assert server.client.take_retried() == []


def test_retry_after_is_heeded_but_not_for_ever(fake, monkeypatch):
    monkeypatch.setattr("tutelage.models.served.client.LONGEST_PAUSE_S", 0.3)
    server = connect(fake.url, retries=4)
    fake.faults[SCORING] = [f.status(503, retry_after="1e9")] * 4
    started = time.monotonic()
    server.score([IDS], 0)
    assert 1.19 < time.monotonic() - started < 8  # pauses of our own would rarely come to .9


def test_a_fault_that_stays_ends_after_all_tries_and_names_the_server(fake):
    server = connect(fake.url)
    fake.faults[SCORING] = [f.status(500, "engine is dead")] * 3
    with pytest.raises(ServerError, match=r"teacher's server .*HTTP 500: engine is dead.*3 tries"):
        server.score([IDS], 0)
    assert not fake.faults[SCORING]


def test_the_first_fault_that_stays_ends_the_others_without_their_retries(fake, monkeypatch):
    monkeypatch.setattr("tutelage.models.served.client.LONGEST_PAUSE_S", 60.0)
    server = connect(fake.url)
    fake.faults[SCORING] = [f.status(503, "busy", retry_after="50"), f.status(400, "no")]
    started = time.monotonic()
    with pytest.raises(ServerError, match=r"says: no|busy"):
        server.client.map(lambda ids: server.score([ids], 0), [IDS, IDS])
    assert time.monotonic() - started < 10


def test_a_server_that_is_not_there_is_an_error_of_exit_code_6(fake):
    fake.close()
    with pytest.raises(ServerError, match="ConnectError") as caught:
        connect(fake.url)
    assert caught.value.exit_code == 6


def test_a_name_that_nobody_knows_is_tried_again_and_then_an_error_of_exit_code_6():
    with pytest.raises(
        ServerError, match=r"no-such-host\.invalid.*ConnectError.*3 tries"
    ) as caught:
        connect("http://no-such-host.invalid:8000")
    assert caught.value.exit_code == 6


def test_a_server_that_never_answers_or_drips_is_given_up_at_its_deadline(fake):
    for fault in (f.slow(2.0), f.dripping(0.05), f.endless_headers):
        server = connect(fake.url, timeout_s=0.4, retries=0)
        fake.faults[SCORING] = [fault]
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"server\.timeout_s 0\.4"):
            server.score([IDS], 3)
        assert time.monotonic() - started < 1.5


# --- faults that stay ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "advice"),
    [(401, "key_env"), (403, "switched off"), (404, "server.model"), (422, "version")],
)
def test_a_refusal_is_not_asked_again(fake, code, advice):
    server = connect(fake.url)
    fake.faults[SCORING] = [f.status(code, "not you")]
    with pytest.raises(ServerError, match=rf"HTTP {code}: .*{advice}.*It says: not you"):
        server.score([IDS], 0)
    assert fake.count(SCORING) == 1


def test_redirects_are_never_followed(fake, serve, gpt2_pair):
    other = serve(gpt2_pair[0])
    fake.faults["/v1/models"] = [f.status(307, "there", location=other.url + "/v1/models")]
    with pytest.raises(ServerError, match=r"redirects.*server\.url"):
        connect(fake.url)
    assert not other.asked


def test_an_answer_longer_than_the_question_needs_is_not_read(fake):
    server = connect(fake.url)
    fake.faults[SCORING] = [f.content(b" " * (4 * 2**20))]
    with pytest.raises(ServerError, match="longer than"):
        server.score([IDS], 0)


def first_place(change):
    """Edits the log-probabilities of the third token of the first choice."""
    return f.edited(lambda choices: change(choices[0]["prompt_logprobs"], 2))


def _set_own(value):
    def change(places, at):
        places[at][str(IDS[at])]["logprob"] = value

    return first_place(change)


BAD = {
    "one token short": (first_place(lambda p, at: p.pop()), "4 of 5 tokens"),
    "shifted left": (first_place(lambda p, at: p.append(p.pop(0))), "shifted"),
    "shifted right": (first_place(lambda p, at: p.insert(1, p.pop())), "shifted"),
    "a scored first token": (first_place(lambda p, at: p.__setitem__(0, p[1])), "nothing predicts"),
    "a null place": (first_place(lambda p, at: p.__setitem__(at, None)), "no log-prob"),
    "a null number": (_set_own(None), "is None"),
    "minus infinity": (_set_own(-9999.0), "minus infinity"),
    "a text": (_set_own("-1.5"), "is -1.5"),
    "above zero": (_set_own(0.5), "is 0.5"),
    "a mass above one": (
        first_place(lambda p, at: [e.__setitem__("logprob", -0.1) for e in p[at].values()]),
        "mass",
    ),
    "too few listed": (
        first_place(lambda p, at: [p[at].pop(k) for k in list(p[at])[1:]]),
        "lists 1 tokens",
    ),
    "no choice": (f.edited(lambda choices: choices.pop()), "answers for the prompts"),
    "wrong order": (f.edited(lambda c: c[0].update(index=1)), "answers for the prompts"),
    "another prompt": (
        f.edited(lambda c: c[0].update(prompt_token_ids=[1, 2, 3, 4, 5])),
        "repeats other token ids",
    ),
    "no echo": (f.edited(lambda c: c[0].pop("prompt_token_ids")), "repeats other token ids"),
    "NaN": (
        lambda good: (200, {}, b'{"choices": [{"index": 0, "prompt_logprobs": [NaN]}]}'),
        "repeats other token ids",
    ),
}


@pytest.mark.parametrize(("fault", "told"), BAD.values(), ids=BAD)
def test_an_answer_that_is_not_what_was_asked_is_tried_once_more_and_then_an_error(
    fake, fault, told
):
    server = connect(fake.url)
    fake.faults[SCORING] = [fault]
    good = server.score([IDS], 3)[0]  # the second answer is good
    assert len(server.client.take_retried()) == 1
    assert good.sampled.shape == (4,)
    fake.faults[SCORING] = [fault, fault]
    with pytest.raises(ServerError, match=told):
        server.score([IDS], 3)


def test_a_nan_log_probability_is_an_error(fake):
    server = connect(fake.url)

    def poison(good):
        text = f.json.dumps(good[2])
        number = str(good[2]["choices"][0]["prompt_logprobs"][2][str(IDS[2])]["logprob"])
        return 200, {}, text.replace(number, "NaN").encode()

    fake.faults[SCORING] = [poison] * 2
    with pytest.raises(ServerError, match="is nan"):
        server.score([IDS], 3)


SAMPLED = {
    "no ids": (lambda c: c[0].pop("token_ids"), "no token_ids"),
    "nothing": (lambda c: c[0].update(token_ids=[]), "sampled 0 tokens"),
    "too long": (lambda c: c[0].update(token_ids=[5] * 9), "sampled 9 tokens"),
    "beyond the vocabulary": (lambda c: c[0].update(token_ids=[5] * 5 + [4000]), "vocabulary"),
    "past a stop": (lambda c: c[0].update(token_ids=[15, 5, 5, 5, 5, 5]), "after a stop id"),
    "aborted": (lambda c: c[0].update(token_ids=[5], finish_reason="abort"), "'abort'"),
    "short": (lambda c: c[0].update(token_ids=[5, 5], finish_reason="length"), "of 6 tokens"),
    "no logprobs": (lambda c: c[0].update(logprobs=None), "no logprobs"),
    "a logprob missing": (lambda c: c[0]["logprobs"]["token_logprobs"].pop(), "log-prob"),
}


@pytest.mark.parametrize(("change", "told"), SAMPLED.values(), ids=SAMPLED)
def test_a_completion_that_cannot_be_is_an_error(fake, change, told):
    server = connect(fake.url)
    params = SamplingParams(max_new_tokens=6)
    stops = frozenset(range(0, 300, 15))
    drawn = server.sample([3, 4], params, 1, stops, 312)
    assert drawn == server.sample([3, 4], params, 1, stops, 312)
    fake.faults[SCORING] = [f.edited(change)] * 2
    with pytest.raises(ServerError, match=told):
        server.sample([3, 4], params, 1, stops, 312)


def test_a_completion_ends_only_at_our_stop_ids_and_has_its_own_log_probabilities(fake):
    server = connect(fake.url)
    stops = frozenset(range(0, 300, 15))
    for seed in range(10):
        drawn = server.sample([3, 4], SamplingParams(max_new_tokens=6), seed, stops, 312)
        scored = server.score([(3, 4, *drawn.ids)], 0, [2])[0]
        assert list(drawn.logprobs) == pytest.approx(scored.sampled.tolist(), abs=1e-5)
        assert (drawn.ids[-1] in stops) == (drawn.finish_reason == "stop")
        assert all(math.isfinite(x) for x in drawn.logprobs)


# --- keys ------------------------------------------------------------------------------------


def test_the_key_comes_from_a_named_variable_and_appears_nowhere_else(
    serve, gpt2_pair, monkeypatch
):
    fake = serve(gpt2_pair[1], key="sk-canary")
    with pytest.raises(ServerError, match=r"HTTP 401: .*key_env"):
        connect(fake.url)
    monkeypatch.setenv("TEACHER_KEY", "sk-canary")
    server = connect(fake.url, key_env="TEACHER_KEY")
    assert server.model == "served"
    monkeypatch.setenv("TEACHER_KEY", "sk-wrong")
    with pytest.raises(ServerError) as caught:  # the server repeats the key in its answer
        connect(fake.url, key_env="TEACHER_KEY")
    assert "sk-wrong" not in str(caught.value)
    assert "***" in str(caught.value)
    monkeypatch.delenv("TEACHER_KEY")
    with pytest.raises(UsageError, match="TEACHER_KEY"):
        connect(fake.url, key_env="TEACHER_KEY")
    assert "sk-" not in server.settings.model_dump_json()


@pytest.mark.parametrize(
    ("server", "told"),
    [
        ({"url": "http://me:secret@host:1"}, "user or password"),
        ({"url": "ftp://host"}, "not the address"),
        ({"url": "host:8000"}, "not the address"),
        ({"url": "http://host:99999"}, "[Pp]ort"),
        ({"url": "http://169.254.169.254/latest"}, "link-local"),
        ({"url": "http://2852039166"}, "link-local"),
        ({"url": "http://0xa9.0xfe.0xa9.0xfe"}, "link-local"),
        ({"url": "http://[::ffff:169.254.169.254]"}, "link-local"),
        ({"url": "http://[fe80::1]"}, "link-local"),
        ({"url": "http://host/?token=1"}, "query"),
        ({"url": "http://host", "key_env": "sk-secret"}, "key_env.*NAME"),
        ({"url": "http://host", "key_env": "sk_secret"}, "key_env.*NAME"),
        ("http://me:secret@host", "server.*got 'http://[*]{3}@host'"),
        ({"url": "http://host", "key": "sk-1"}, "key does not exist"),
        ({"url": "http://host", "timeout_s": 0}, "timeout_s"),
        ({"url": "http://host", "weights": "folder"}, "teacher.server.weights"),
    ],
)
def test_an_address_that_cannot_be_right_is_refused(server, told):
    tree = {
        "student": {"path": "s"},
        "teacher": {"path": "t", "server": server},
        "data": {"prompts": "p"},
    }
    with pytest.raises(UsageError, match=told) as caught:
        parse_config(tree)
    assert "secret" not in str(caught.value)


def test_escapes_of_a_hostile_server_do_not_reach_the_terminal(fake):
    server = connect(fake.url)
    fake.faults[SCORING] = [f.status(400, "\x1b]0;gotcha\x07 no " + "x" * 10_000)]
    with pytest.raises(ServerError) as caught:
        server.score([IDS], 0)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


# --- which model -----------------------------------------------------------------------------


def test_a_server_of_several_models_must_be_told_which(fake):
    two = {"data": [{"id": "a"}, {"id": "b"}]}
    for settings, told in (({}, "serves a, b; set"), ({"model": "c"}, "not c")):
        fake.faults["/v1/models"] = [lambda good: (200, {}, two)]
        with pytest.raises(ServerError, match=told):
            connect(fake.url, **settings)
    fake.faults["/v1/models"] = [lambda good: (200, {}, two)]
    assert connect(fake.url, model="b").model == "b"


def test_something_else_than_a_model_server_is_an_error(fake):
    fake.faults["/v1/models"] = [lambda good: (200, {}, ["hello"])] * 2
    with pytest.raises(ServerError, match="OpenAI-compatible"):
        connect(fake.url)
