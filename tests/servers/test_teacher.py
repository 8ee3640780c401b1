"""A served teacher says what the model in process says, and refuses what it cannot know."""

import json
import shutil

import fake as f
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import read_jsonl, tiny_tokenizer
from tutelage import config as c
from tutelage import metrics
from tutelage.config import ServerConfig
from tutelage.errors import ServerError, UsageError
from tutelage.gradient import Models, accumulate, measure
from tutelage.models.loading import load_model
from tutelage.models.served.teacher import ServedTeacher
from tutelage.ops import divergences
from tutelage.session import prepare
from tutelage.training import train
from tutelage.types import SamplingParams, TokenScores

SCORING = "/v1/completions"


def served(settings, fake, **sections):
    server = {"url": fake.url, "retries": 1, **sections.pop("server", {})}
    teacher = {"path": str(fake.folder), "server": server}
    return prepare(settings(teacher=teacher, **sections))


def both(settings, fake, **sections):
    """The same student with the teacher at its server and in process, and some rollouts."""
    session = served(settings, fake, **sections)
    local = prepare(settings(**sections))
    params = SamplingParams(max_new_tokens=10)
    rollouts = local.models.student.sample(local.prompts[:6], params, seed=0, step=0)
    return session.models, local.models, rollouts


def gradient(models, objective, rollouts):
    models.student.model.zero_grad(set_to_none=True)
    result = accumulate(
        models, objective, rollouts, micro_batch_size=4, aggregation="token_mean", overlap_k=8
    )
    grads = [p.grad.clone() for p in models.student.model.parameters() if p.grad is not None]
    return result, grads


OBJECTIVES = {
    "full": c.Full(),
    "student support": c.TopK(k=8),
    "union, reference code": c.TopK(k=8, support="union", tail=c.ReferenceCode()),
    "sampled, kl baseline": c.Sampled(baseline=c.KLBaseline()),
    "full, entropy weight": c.Full(weight=c.TeacherEntropyWeight()),
    "full, temperature": c.Full(),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_complete_lists_give_the_loss_gradient_and_metrics_of_the_model_in_process(
    settings, serve, gpt2_pair, name
):
    fake, objective = serve(gpt2_pair[1], max_logprobs=-1), OBJECTIVES[name]
    temperature = 0.7 if "temperature" in name else 1.0
    tree = {"objective": objective.model_dump(), "rollout": {"temperature": temperature}}
    there, here, rollouts = both(settings, fake, **tree)
    (a, a_grads), (b, b_grads) = (gradient(m, objective, rollouts) for m in (there, here))
    assert a.loss == pytest.approx(b.loss, abs=1e-5)
    for mine, theirs in zip(a_grads, b_grads, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    assert a.table.keys() == b.table.keys()
    for key, values in b.table.items():
        assert torch.allclose(a.table[key], values, atol=1e-4, equal_nan=True), key


LISTED = {
    "sampled": c.Sampled(),
    "sampled, batch mean": c.Sampled(baseline=c.BatchMeanBaseline()),
    "teacher support": c.TopK(k=8, support="teacher"),
    "teacher support, forward": c.TopK(k=8, support="teacher", divergence=c.ForwardKL()),
    "teacher support, renormalised": c.TopK(k=8, support="teacher", tail=c.Renormalise()),
    "intersection": c.TopK(k=8, support="intersection"),
    "return to go": c.TopK(k=8, support="teacher", return_to_go=0.9),
    "brake": c.TopK(k=8, support="teacher", brake=c.Brake(coefficient=0.1)),
}
ASKED = {
    support: c.TopK(k=8, support=support)
    for support in ("student", "union", "symmetric_difference")
}


def padded_rows_hidden(folder, output):
    """A teacher whose padding has no mass, as a trained model's, so that lists need none of it."""
    shutil.copytree(folder, output)
    file = output / "model.safetensors"
    weights = load_file(file)
    # The last hidden state is normalised, so a row along -(its mean direction) is never likely.
    embedding = weights["transformer.wte.weight"]
    weights["transformer.wte.weight"] = torch.cat([embedding[:300], torch.zeros(12, 24)])
    weights["transformer.ln_f.bias"] += 5.0
    weights["transformer.wte.weight"][300:] = -20.0
    save_file(weights, file, metadata={"format": "pt"})
    return output


@pytest.mark.parametrize("name", [*LISTED, *ASKED])
def test_lists_give_the_gradient_of_the_model_in_process_on_every_support_they_can_serve(
    settings, serve, gpt2_pair, tmp_path, name
):
    objective = (LISTED | ASKED)[name]
    folder = padded_rows_hidden(gpt2_pair[1], tmp_path / "teacher")
    fake = serve(folder, max_logprobs=20, scores_ids=name in ASKED)
    there, here, rollouts = both(settings, fake, objective=objective.model_dump())
    here = Models(
        student=here.student,
        teacher=load_model(c.ModelConfig(path=str(folder)), "teacher"),
        references=here.references,
    )
    here.teacher.vocabulary = 300
    assert isinstance(there.teacher, ServedTeacher)
    assert not there.teacher.question.complete
    (a, a_grads), (b, b_grads) = (gradient(m, objective, rollouts) for m in (there, here))
    assert a.loss == pytest.approx(b.loss, abs=1e-5)
    for mine, theirs in zip(a_grads, b_grads, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5)
    for key in a.table.keys() & b.table.keys():  # what is told is exact, but for the divergences
        if key not in ("kl/reverse", "kl/forward"):
            assert torch.allclose(a.table[key], b.table[key], atol=1e-4, equal_nan=True), key
    for key in ("kl/reverse", "kl/forward"):
        assert (a.table[key] >= -1e-6).all()
        assert (a.table[key] <= b.table[key] + 1e-5).all()
    assert (a.table["kl/bucketed"] == 1).all()
    assert b.table.keys() - a.table.keys() == {
        "entropy/teacher",
        "entropy/gap",
        "rollout/eos_mass_teacher",
        "stop/teacher",
    }


def test_bucketed_metrics_equal_brute_force():
    generator = torch.Generator().manual_seed(0)
    p, q = (
        torch.randn(40, 12, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
        for _ in range(2)
    )
    sampled = torch.randint(0, 12, (40,), generator=generator)
    values, ids = q.topk(4)
    scores = TokenScores(
        sampled=q.gather(-1, sampled[:, None]).squeeze(-1),
        ids=ids,
        logprobs=values,
        mask=torch.ones_like(ids, dtype=torch.bool),
        likely_ids=ids,
        likely_logprobs=values,
    )
    table, full = (
        metrics.served_statistics(p, scores, sampled, 3),
        metrics.token_statistics(p, q, sampled, 3),
    )
    for row in range(40):
        known = sorted({*ids[row].tolist(), int(sampled[row])})
        a, b = p[row].exp().numpy(), q[row].exp().numpy()
        pairs = [(a[v], b[v]) for v in known] + [(1 - a[known].sum(), 1 - b[known].sum())]
        reverse = sum(x * np.log(x / y) for x, y in pairs)
        forward = sum(y * np.log(y / x) for x, y in pairs)
        assert table["kl/reverse"][row] == pytest.approx(reverse)
        assert table["kl/forward"][row] == pytest.approx(forward)
    assert (table["kl/reverse"] <= divergences.reverse_kl(p, q) + 1e-12).all()
    for key in table.keys() & full.keys() - {"kl/reverse", "kl/forward"}:
        assert torch.allclose(table[key], full[key], equal_nan=True), key
    short = TokenScores(
        sampled=scores.sampled,
        ids=ids[:, :2],
        logprobs=values[:, :2],
        mask=scores.mask[:, :2],
        likely_ids=ids[:, :2],
        likely_logprobs=values[:, :2],
    )
    assert not any(k.startswith("overlap") for k in metrics.served_statistics(p, short, sampled, 3))


# --- what cannot be served -------------------------------------------------------------------

REFUSED = {
    "full": ({"objective": {"type": "full"}}, "--max-logprobs 312"),
    "kl baseline": ({"objective": {"type": "sampled", "baseline": "kl"}}, "whole distribution"),
    "target": (
        {"objective": {"support": "teacher", "target": "arithmetic"}},
        "objective.target arithmetic",
    ),
    "weight": (
        {"objective": {"support": "teacher", "weight": "teacher_entropy"}},
        "objective.weight teacher_entropy",
    ),
    "student support": ({"objective": {"support": "student", "k": 8}}, "support teacher"),
    "union": ({"objective": {"support": "union", "k": 8}}, "support teacher"),
    "k": ({"objective": {"support": "teacher", "k": 21}}, "--max-logprobs 21"),
    "temperature": (
        {"objective": {"type": "sampled"}, "rollout": {"temperature": 0.9}},
        "temperature 1 whatever",
    ),
    "ramp": (
        {
            "objective": {
                "support": "teacher",
                "divergence": {"type": "mix", "ramp": {"low": 0.1, "high": 1.0}},
            }
        },
        "mix with a ramp",
    ),
}


@pytest.mark.parametrize(("sections", "told"), REFUSED.values(), ids=REFUSED)
def test_what_a_server_cannot_say_is_refused_at_the_start_with_what_works(
    settings, serve, gpt2_pair, sections, told, tmp_path
):
    fake = serve(gpt2_pair[1], max_logprobs=20)
    with pytest.raises(UsageError, match=told):
        served(settings, fake, **sections)
    assert not (tmp_path / "run").exists()


def test_a_likely_token_beyond_the_students_rows_is_an_error_that_says_so(
    settings, serve, gpt2_pair
):
    fake = serve(gpt2_pair[1], max_logprobs=20)  # random weights: the head's padding is likely
    there, _, rollouts = both(settings, fake, objective={"type": "sampled"})
    with pytest.raises(ServerError, match="student's vocabulary ends at 299"):
        measure(there, rollouts, micro_batch_size=8, overlap_k=8)


def test_a_server_with_another_tokenizer_of_equal_size_is_refused(
    settings, serve, gpt2_pair, tmp_path
):
    shutil.copytree(gpt2_pair[1], tmp_path / "other")
    file = tmp_path / "other" / "tokenizer.json"
    tree = json.loads(file.read_text())
    vocabulary = tree["model"]["vocab"]
    tree["model"]["vocab"] = {token: len(vocabulary) - 1 - i for token, i in vocabulary.items()}
    tree["added_tokens"] = []
    file.write_text(json.dumps(tree))
    fake = serve(tmp_path / "other", max_logprobs=20)
    assert len(fake.tokenizer) == len(tiny_tokenizer())
    teacher = {"path": str(gpt2_pair[1]), "server": {"url": fake.url}}
    with pytest.raises(ServerError, match="another tokenizer"):
        prepare(settings(teacher=teacher, objective={"type": "sampled"}))


def test_a_context_too_short_for_the_run_is_refused(settings, serve, gpt2_pair):
    fake = serve(gpt2_pair[1], max_logprobs=-1, max_model_len=18)
    with pytest.raises(UsageError, match="teacher reads 17 tokens"):
        served(settings, fake)


def test_a_served_teacher_needs_no_weights_in_its_folder(settings, serve, gpt2_pair, tmp_path):
    from tutelage.planning import plan

    fake = serve(gpt2_pair[1], max_logprobs=-1)
    shutil.copytree(gpt2_pair[1], tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    teacher = {"path": str(tmp_path / "bare"), "server": {"url": fake.url}}
    config = settings(teacher=teacher)
    session, local = prepare(config), prepare(settings())
    assert session.models.teacher.stop_ids == local.models.teacher.stop_ids
    assert plan(config).teacher_bytes == 0


def test_a_run_keeps_what_a_server_lists_and_no_more(settings, serve, gpt2_pair, tmp_path):
    fake = serve(gpt2_pair[0], max_logprobs=6)  # its head is not padded
    teacher = {"path": str(gpt2_pair[0]), "server": {"url": fake.url}}
    changes = {"objective": {"type": "sampled"}, "run": {"steps": 1, "metrics_k": 8}}
    far = train(settings(**changes, teacher=teacher)).run / "rollouts" / "step-0.jsonl"
    changes["run"] = {**changes["run"], "dir": str(tmp_path / "near")}
    near = train(settings(**changes, teacher={"path": str(gpt2_pair[0])})).run
    for served_, local in zip(
        read_jsonl(far), read_jsonl(near / "rollouts" / "step-0.jsonl"), strict=True
    ):
        assert served_["likely"]["student"] == local["likely"]["student"]
        theirs, ours = served_["likely"]["teacher"], local["likely"]["teacher"]
        assert theirs["ids"] == [ids[:6] for ids in ours["ids"]]
        assert np.allclose(theirs["logprobs"], [x[:6] for x in ours["logprobs"]], atol=2e-3)


# --- in mid-run ------------------------------------------------------------------------------


def test_a_server_restarted_with_another_model_stops_the_run(settings, serve, gpt2_pair, tmp_path):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    config = settings(
        teacher={"path": str(gpt2_pair[1]), "server": {"url": fake.url}}, run={"steps": 3}
    )

    def restart(record):
        if record["kind"] == "train" and record["step"] == 1:
            with torch.no_grad():
                fake.model.lm_head.weight.add_(0.3 * torch.randn_like(fake.model.lm_head.weight))

    with pytest.raises(ServerError, match="another model than when the run began") as caught:
        train(config, observer=restart)
    assert caught.value.exit_code == 6
    assert [r["step"] for r in read_jsonl(tmp_path / "run" / "metrics.jsonl")][-1] == 1
    with pytest.raises(ServerError, match="another model"):  # nor is it resumed with
        train(config, resume=True)
    fake.reload()
    assert train(config, resume=True).step == 3


def test_a_retry_is_counted_recorded_and_told(settings, serve, gpt2_pair, tmp_path):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    config = settings(teacher={"path": str(gpt2_pair[1]), "server": {"url": fake.url}})
    told = []

    def disturb(record):
        told.append(record)
        if record["kind"] == "eval" and record["step"] == 0:
            fake.faults[SCORING] = [f.status(503, "busy")]

    train(config, observer=disturb)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [r["server/teacher_retries"] for r in records] == [0, 1, 0, 0]
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    (event,) = [e for e in events if e["event"] == "server_retry"]
    assert "HTTP 503: busy" in event["fault"]
    assert any("asked again" in r.get("text", "") for r in told)


def test_what_ended_a_run_at_a_server_and_the_tries_before_it_are_kept(
    settings, serve, gpt2_pair, tmp_path
):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    server = {"url": fake.url, "retries": 1}
    config = settings(teacher={"path": str(gpt2_pair[1]), "server": server})

    def break_down(record):
        if record["kind"] == "eval":
            fake.faults[SCORING] = [f.status(503, "engine died")] * 100

    with pytest.raises(ServerError, match="engine died"):
        train(config, observer=break_down)
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert [e["event"] for e in events][-3:] == ["server_retry", "server_failed", "stopped"]
    assert "engine died" in events[-2]["text"]


def test_a_run_keeps_what_the_server_said_and_never_the_key(
    settings, serve, gpt2_pair, tmp_path, monkeypatch
):
    monkeypatch.setenv("TEACHER_KEY", "sk-canary")
    fake = serve(gpt2_pair[1], max_logprobs=-1, key="sk-canary")
    server = {"url": fake.url, "key_env": "TEACHER_KEY"}
    train(settings(teacher={"path": str(gpt2_pair[1]), "server": server}))
    assert "Bearer sk-canary" in fake.keys
    for file in (tmp_path / "run").rglob("*"):
        assert not file.is_file() or b"sk-canary" not in file.read_bytes(), file
    told = json.loads((tmp_path / "run" / "servers.json").read_text())["teacher"]
    assert told["capabilities"]["max_logprobs"] == 312
    assert told["version"] == "0.32.0"


def test_a_served_teacher_samples_its_share_with_draws_of_its_own(settings, serve, gpt2_pair):
    fake = serve(gpt2_pair[0], max_logprobs=-1)
    teacher = {"path": str(gpt2_pair[0]), "server": {"url": fake.url}}
    session = prepare(settings(teacher=teacher))
    params = SamplingParams(max_new_tokens=8)
    key = {"group_size": 3, "seed": 1, "step": 2}
    drawn = session.models.teacher.sample(session.prompts[:4], params, **key)
    again = session.models.teacher.sample(session.prompts[1:2], params, **key)
    assert drawn[3:6] == again  # neither company nor order chooses a sample
    some = session.models.teacher.sample(
        session.prompts[:4], params, **key, only=lambda prompt, index: index == 1
    )
    assert some == drawn[1::3]
    assert len({r.completion_ids for r in drawn}) > 6


def test_evaluations_of_a_served_and_a_local_teacher_agree(settings, serve, gpt2_pair):
    fake = serve(gpt2_pair[0], max_logprobs=-1)
    teacher = {"path": str(gpt2_pair[0]), "server": {"url": fake.url}}
    session = prepare(settings(teacher=teacher))
    params = SamplingParams(max_new_tokens=8, temperature=0.0)
    key = {"group_size": 1, "seed": 1, "step": 2}
    there = session.models.teacher.sample(session.prompts[:6], params, **key)
    here = session.models.student.sample(session.prompts[:6], params, **key)
    for a, b in zip(there, here, strict=True):
        assert (a.completion_ids, a.finish_reason, a.text) == (
            b.completion_ids,
            b.finish_reason,
            b.text,
        )
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)


def test_eval_measures_a_model_at_its_server(serve, gpt2_pair, tmp_path, capsys):
    from helpers import sums, write_jsonl
    from tutelage.cli import main

    fake = serve(gpt2_pair[0])
    prompts = write_jsonl(tmp_path / "test.jsonl", sums(6))
    words = ["eval", str(gpt2_pair[0]), "--prompts", str(prompts), "--verifier", "numeric"]
    words += ["--max-new-tokens", "8", "--temperature", "0", "--samples", "1", "--json"]
    records = []
    for extra in ([], ["--server", fake.url]):
        assert main([*words, *extra]) == 0
        records.append(json.loads(capsys.readouterr().out))
    assert records[0] == records[1]
    assert main([*words, "--server", "nonsense"]) == 2
    assert fake.count(SCORING) > 6


def test_the_teacher_reads_its_own_prompt_at_a_server_too(settings, serve, gpt2_pair):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    teacher = {"path": str(gpt2_pair[1]), "user_prompt": "Easy: {question}"}
    there = prepare(settings(teacher={**teacher, "server": {"url": fake.url}}))
    here = prepare(settings(teacher=teacher))
    params = SamplingParams(max_new_tokens=6)
    rollouts = here.models.student.sample(here.prompts[:4], params, seed=0, step=0)
    tables = [
        measure(m.models, rollouts, micro_batch_size=3, overlap_k=8)[0] for m in (there, here)
    ]
    assert torch.allclose(tables[0]["kl/reverse"], tables[1]["kl/reverse"], atol=1e-4)


# --- the cache -------------------------------------------------------------------------------


def score_twice(settings, fake, cache, **server):
    """Requests of a second session that scores what a first one scored."""
    config = {"cache": str(cache), **server}
    tables, counts = [], []
    for _ in range(2):
        session = served(settings, fake, server=config)
        params = SamplingParams(max_new_tokens=6)
        rollouts = session.models.student.sample(session.prompts[:8], params, seed=0, step=0)
        before = fake.count(SCORING)
        tables.append(measure(session.models, rollouts, micro_batch_size=4, overlap_k=8)[0])
        counts.append(fake.count(SCORING) - before)
    return tables, counts


def test_scores_are_kept_on_disk_and_found_again(settings, serve, gpt2_pair, tmp_path):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    (first, second), counts = score_twice(settings, fake, tmp_path / "cache")
    assert counts == [2, 0]
    for key, values in first.items():
        assert torch.allclose(second[key], values, atol=1e-6, equal_nan=True), key


def test_another_teacher_finds_none_of_the_first_ones_scores(settings, serve, gpt2_pair, tmp_path):
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    score_twice(settings, fake, tmp_path / "cache")
    with torch.no_grad():
        fake.model.lm_head.weight.mul_(1.1)
    _, counts = score_twice(settings, fake, tmp_path / "cache")
    assert counts == [2, 0]


def test_a_damaged_entry_is_asked_anew_and_a_damaged_file_made_anew(
    settings, serve, gpt2_pair, tmp_path
):
    import sqlite3

    fake = serve(gpt2_pair[1], max_logprobs=-1)
    (good, _), _ = score_twice(settings, fake, tmp_path / "cache")
    file = tmp_path / "cache" / "scores.sqlite"
    connection = sqlite3.connect(file)
    with connection:
        connection.execute("update scores set value = substr(value, 1, length(value) - 9)")
    connection.close()
    (mended, _), counts = score_twice(settings, fake, tmp_path / "cache")
    assert counts == [2, 0]
    assert torch.equal(mended["kl/reverse"], good["kl/reverse"])
    file.write_bytes(b"not a database at all" * 100)
    (_, _), counts = score_twice(settings, fake, tmp_path / "cache")
    assert counts == [2, 0]


def test_the_cache_stays_within_its_bound_and_keeps_what_was_used_last(tmp_path):
    from tutelage.models.served.answers import PromptScores
    from tutelage.models.served.cache import ScoreCache
    from tutelage.models.served.server import Fingerprint

    fingerprint = Fingerprint("m", (1, 2), np.array([-1.0]), 0.0)
    cache = ScoreCache(tmp_path, fingerprint, megabytes=1)
    keys = [ScoreCache.key([i], 1, 300, None) for i in range(60)]
    scores = PromptScores(
        sampled=np.zeros(10),
        ids=np.zeros((10, 300), dtype=np.int64),
        logprobs=np.zeros((10, 300)),
        decoded={},
    )
    for i, key in enumerate(keys):
        cache.put(key, scores)
        assert cache.get(keys[0]) is not None, i  # used all the time
    (total,) = cache.connection.execute("select sum(length(value)) from scores").fetchone()
    assert 2**19 < total <= 2**20
    assert cache.get(keys[1]) is None
    assert cache.get(keys[-1]) is not None


def test_a_cache_that_cannot_be_written_is_told_at_the_start(settings, serve, gpt2_pair, tmp_path):
    (tmp_path / "file").write_text("")
    fake = serve(gpt2_pair[1], max_logprobs=-1)
    with pytest.raises(UsageError, match=r"server\.cache"):
        served(settings, fake, server={"cache": str(tmp_path / "file" / "cache")})


def test_a_server_config_survives_the_resolved_settings(settings, tmp_path):
    from tutelage.config import dump_config, load_config

    server = {"url": "http://127.0.0.1:8000/v1/", "key_env": "KEY"}
    config = settings(teacher={"path": "t", "server": server})
    assert config.teacher.server == ServerConfig(url="http://127.0.0.1:8000", key_env="KEY")
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "run.yaml") == config
    flags = ["--teacher.server.url", "http://127.0.0.1:9"]
    assert load_config(tmp_path / "run.yaml", flags).teacher.server.url == ("http://127.0.0.1:9",)
