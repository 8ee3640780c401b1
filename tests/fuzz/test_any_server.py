"""Answers of servers: what a client makes of any of them."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from fuzzing import as_json, damaged, json_file
from hypothesis import strategies as st

from tutelage.config import ServerConfig
from tutelage.models.served.answers import PromptScores
from tutelage.models.served.cache import ScoreCache
from tutelage.models.served.client import Client
from tutelage.models.served.server import Fingerprint, Server
from tutelage.types import SamplingParams

PROMPT = (3, 1, 4, 1, 5)
STOPS = frozenset({7})
MODELS = {"data": [{"id": "served", "root": "/m", "max_model_len": 64}]}


def scored(tokens, listed=2):
    places = [None]
    for token in tokens[1:]:
        ids = list(dict.fromkeys([token, *range(listed)]))
        places.append({str(i): {"logprob": -1.5 - i / 10, "decoded_token": f"t{i}"} for i in ids})
    return places


def npy(values):
    with io.BytesIO() as buffer:
        np.save(buffer, np.array(values, dtype=np.float32))
        return base64.b64encode(buffer.getvalue()).decode()


SCORES = {
    "choices": [
        {"index": 0, "prompt_token_ids": list(PROMPT), "prompt_logprobs": scored(PROMPT)},
        {"index": 1, "prompt_token_ids": [2, 6], "prompt_logprobs": scored((2, 6))},
    ]
}
SAMPLED = {
    "choices": [
        {
            "index": 0,
            "prompt_token_ids": list(PROMPT),
            "token_ids": [2, 9, 7],
            "finish_reason": "stop",
            "logprobs": {"token_logprobs": [-0.5, -1.0, -2.0]},
        }
    ]
}
ROWS = [[1, 2], [3], [1], [2, 9]]
GIVEN = {
    "prompt_logprobs": scored(PROMPT),
    "prompt_token_id_logprobs": npy([[-1.0, -2.0], [-1, 0], [-3, 0], [-1, -1]]),
}
KEYS = ("index", "prompt_token_ids", "prompt_logprobs", "logprob", "token_ids", "choices", "error")


@pytest.fixture
def answering(monkeypatch):
    """A server whose next answers are (status, body); nothing waits."""
    monkeypatch.setattr("tutelage.models.served.client.LONGEST_PAUSE_S", 0.0)
    told = {"answer": (200, as_json(MODELS))}

    def once(self, method, path, body, limit):
        status, content = told["answer"]
        response = SimpleNamespace(status_code=status, headers=told.get("headers", {}))
        return self._decoded(response, path, content)

    monkeypatch.setattr(Client, "_within_deadline", once)
    server = Server(ServerConfig(url="http://127.0.0.1:1", retries=1), "teacher")

    def ask(question, status, content, headers):
        told["answer"], told["headers"] = (status, content), headers
        return question(server)

    return ask


def answers(good):
    statuses = st.sampled_from([200] * 12 + [204, 302, 400, 401, 404, 422, 429, 500, 503, 999])
    headers = st.sampled_from(
        [{}, {"retry-after": "nan"}, {"retry-after": "-1"}, {"location": "http://\x1b[2J"}]
    )
    return st.tuples(statuses, json_file(good, KEYS), headers)


def all_are_logprobs(scores):
    for values in (scores.sampled, scores.logprobs):
        assert np.isfinite(values).all()
        assert (values <= 1e-3).all()


def test_any_scores(fuzz, answering):
    def read(case):
        found = answering(lambda s: s.score([PROMPT, (2, 6)], 2), *case)
        assert [len(f.sampled) for f in found] == [4, 1]
        for scores in found:
            all_are_logprobs(scores)

    fuzz(read, answers(SCORES), examples=400)


def test_any_scores_of_given_ids(fuzz, answering):
    def read(case):
        found = answering(lambda s: s.score_ids(PROMPT, 2, 1, ROWS), *case)
        all_are_logprobs(found)
        assert np.isfinite(found.asked[0]).all()

    arrays = damaged(base64.b64decode(GIVEN["prompt_token_id_logprobs"])).map(
        lambda raw: (
            200,
            as_json({**GIVEN, "prompt_token_id_logprobs": base64.b64encode(raw).decode()}),
            {},
        )
    )
    fuzz(read, answers(GIVEN) | arrays, examples=400)


def test_any_completion(fuzz, answering):
    def read(case):
        found = answering(
            lambda s: s.sample(PROMPT, SamplingParams(max_new_tokens=6), 1, STOPS, 12), *case
        )
        assert 0 < len(found.ids) <= 6
        assert all(0 <= i < 12 for i in found.ids)
        assert len(found.ids) == len(found.logprobs)
        assert (found.ids[-1] in STOPS) == (found.finish_reason == "stop")

    fuzz(read, answers(SAMPLED), examples=400)


def test_any_list_of_models_and_version(fuzz, answering):
    def read(case):
        answering(lambda s: (s._choose_model(), s.version(), s.syncs_weights()), *case)

    fuzz(read, answers(MODELS), examples=200)


def test_any_word_on_the_most_log_probabilities(fuzz, answering):
    said = {"error": {"message": "greater than max allowed: 20 (parameter=x)", "code": 400}}
    fuzz(lambda case: answering(lambda s: s.max_logprobs(), *case), answers(said), examples=200)


# --- scores kept on disk ---------------------------------------------------------------------


def kept_scores():
    return PromptScores(
        sampled=np.array([-1.0, -2.0]),
        ids=np.array([[1, 2], [3, 4]]),
        logprobs=np.array([[-1.0, -2.0], [-0.5, -3.0]], dtype=np.float32).astype(float),
        decoded={},
    )


def test_any_file_of_kept_scores_is_used_or_made_anew(fuzz, tmp_path):
    fingerprint = Fingerprint("served", (1, 2), np.array([-1.0]), 0.0)
    key = ScoreCache.key((1, 2, 3), 1, 2, None)
    cache = ScoreCache(tmp_path, fingerprint, 1)
    cache.put(key, kept_scores())
    cache.connection.close()
    path = tmp_path / "scores.sqlite"
    good = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        cache = ScoreCache(tmp_path, fingerprint, 1)
        found = cache.get(key)
        if found is not None:
            assert (found.sampled == kept_scores().sampled).all()
            assert (found.ids == kept_scores().ids).all()
        cache.put(key, kept_scores())
        cache.connection.close()

    fuzz(read, damaged(good), examples=150)


def test_any_row_of_kept_scores_is_used_or_not_there(fuzz, tmp_path):
    fingerprint = Fingerprint("served", (1, 2), np.array([-1.0]), 0.0)
    key = ScoreCache.key((1, 2, 3), 1, 2, None)
    cache = ScoreCache(tmp_path, fingerprint, 1)
    cache.put(key, kept_scores())
    (good,) = cache.connection.execute("select value from scores").fetchone()
    teacher = json.dumps([-1.0])

    def read(case):
        value, logprobs = case
        with cache.connection:
            cache.connection.execute("insert or ignore into teachers values (1, 'served', '')")
            cache.connection.execute("update teachers set logprobs = ?", (logprobs,))
            cache.connection.execute("update scores set value = ?", (value,))
        again = ScoreCache(tmp_path, fingerprint, 1)
        found = again.get(key)
        assert found is None or (found.sampled == kept_scores().sampled).all()
        again.connection.close()
        cache.put(key, kept_scores())

    values = damaged(good) | st.none() | st.text(max_size=3) | st.integers(-9, 9)
    fuzz(read, st.tuples(values, json_file([-1.0]) | st.just(teacher)), examples=200)
