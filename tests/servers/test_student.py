"""A served student always samples with the trainer's weights, or the run stops."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers import read_jsonl
from tutelage import signals
from tutelage.config import parse_config
from tutelage.data.collate import collate
from tutelage.errors import ServerError, UsageError
from tutelage.models.loading import load_model
from tutelage.models.served.student import probe_logprobs, write_weights
from tutelage.session import prepare
from tutelage.training import train
from tutelage.types import SamplingParams

SCORING = "/v1/completions"


@pytest.fixture
def copy(gpt2_pair, tmp_path):
    return shutil.copytree(gpt2_pair[0], tmp_path / "copy")


@pytest.fixture
def fake(serve, copy):
    return serve(copy)


@pytest.fixture
def config(settings, gpt2_pair, fake, copy):
    def make(server=None, **sections):
        own = {"url": fake.url, "weights": str(copy), "retries": 1, **(server or {})}
        return settings(student={"path": str(gpt2_pair[0]), "server": own}, **sections)

    return make


def test_a_run_samples_at_the_server_with_the_weights_of_each_step(config, tmp_path, fake):
    result = train(config(run={"steps": 3}))
    assert result.step == 3
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    for record in records:
        assert record["rollout/drift_k3"] < 1e-8
        assert record["server/stale_rollouts"] == 0
    assert [r["server/syncs"] for r in records] == [1, 0, 1, 1, 1]
    assert [r["rollout/age"] for r in records if r["kind"] == "train"] == [0, 0, 0]
    trained = load_model(parse_config(config().model_dump()).student, "student")
    trained.model.load_state_dict(load_file(result.checkpoint / "model.safetensors"), strict=False)
    probe = tuple(range(5, 15))
    server = load_model(trained_settings(fake.folder), "student")
    assert np.allclose(probe_logprobs(trained, probe), probe_logprobs(server, probe), atol=1e-6)


def trained_settings(folder):
    from tutelage.config import ModelConfig

    return ModelConfig(path=str(folder))


def test_nothing_else_in_the_run_changes(config, settings, tmp_path):
    train(config())
    served = tmp_path / "served"
    (tmp_path / "run").rename(served)
    train(settings())
    for name in ("metrics.jsonl", "events.jsonl"):
        there, here = (read_jsonl(run / name) for run in (served, tmp_path / "run"))
        for a, b in zip(there, here, strict=True):
            extra = {k for k in a.keys() ^ b.keys() if not k.startswith("perf/")}
            assert {k for k in extra if not k.endswith("/count")} <= {
                "server/student_retries",
                "server/stale_rollouts",
                "server/syncs",
                "rollout/accuracy",
                "sequence_reward/auroc",
            }


def test_a_resumed_run_gives_the_server_its_own_weights_first(config, tmp_path, fake, gpt2_pair):
    train(config(run={"steps": 1}))
    shutil.copy(gpt2_pair[0] / "model.safetensors", fake.folder)  # as if it had been set up anew
    fake.reload()
    assert train(config(run={"steps": 2}), resume=True).step == 2
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["rollout/drift_k3"] < 1e-8


def test_a_server_that_does_not_take_the_weights_stops_the_run(config, fake):
    fake.reloads = False
    with pytest.raises(
        ServerError, match=r"not have the trainer's weights after a sync.*tolerance"
    ):
        train(config(optimizer={"lr": 0.05}))


def test_a_server_that_stands_still_while_the_trainer_moves_is_an_error(config, fake):
    session = prepare(config())
    session.sampler.sync()
    fake.reloads = False
    with torch.no_grad():  # far less than the tolerance, but not nothing
        session.models.student.model.get_input_embeddings().weight.mul_(1 + 1e-5)
    moved = probe_logprobs(session.models.student, session.sampler.probe)
    assert 1e-5 < np.abs(moved - session.sampler.own_logprobs).max() < 1e-4
    with pytest.raises(ServerError, match="did not take the new weights"):
        session.sampler.sync()


def test_rollouts_of_weights_that_changed_meanwhile_are_thrown_away_and_counted(config, fake):
    session = prepare(config())
    key = {"group_size": 1, "seed": 0, "step": 0}
    params = SamplingParams(max_new_tokens=6)
    expected = session.sampler.sample(session.prompts[:4], params, **key)

    def other_program(good):
        with torch.no_grad():
            fake.model.get_input_embeddings().weight.mul_(1.5)
        return good

    fake.faults[SCORING] = [other_program]
    rollouts = session.sampler.sample(session.prompts[:4], params, **key)
    assert [r.completion_ids for r in rollouts] == [r.completion_ids for r in expected]
    assert session.sampler.record() == {"server/stale_rollouts": 4, "server/syncs": 2}
    assert session.sampler.record() == {"server/stale_rollouts": 0, "server/syncs": 0}
    fake.faults[SCORING] = [other_program] * 30
    with pytest.raises(ServerError, match="changed its weights 3 times"):
        session.sampler.sample(session.prompts[:4], params, **key)


def test_each_rollout_carries_its_step_and_the_log_probabilities_of_the_trainer(config):
    session = prepare(config())
    student = session.models.student
    student.policy_step = 7
    params = SamplingParams(max_new_tokens=8)
    rollouts = session.sampler.sample(session.prompts[:5], params, group_size=2, seed=3, step=1)
    assert {r.policy_step for r in rollouts} == {7}
    batch = collate(rollouts)
    own = student.score(batch).gather(-1, batch.targets.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(own, batch.sampling_logprobs, atol=1e-4)


def test_at_another_temperature_the_drift_is_unknown_and_told(config, tmp_path):
    told = []
    train(config(rollout={"temperature": 0.8}), observer=told.append)
    records = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert all("rollout/drift_k3" not in r for r in records if r["kind"] == "train")
    assert any("drift_k3 is absent" in r.get("text", "") for r in told)


def test_an_engine_that_samples_from_another_model_is_a_signal():
    record = {"rollout/drift_k3": 0.02, "rollout/age": 0.0}
    signal = signals.drift([record], 0.01)
    assert signal is not None
    assert signal.name == "engine_drift"
    assert signals.drift([{**record, "rollout/age": 1.0}], 0.01) is None
    assert signals.drift([{**record, "rollout/drift_k3": 0.001}], 0.01) is None
    assert signals.drift([{"rollout/age": 0.0}], 0.01) is None
    assert signals.drift([], 0.01) is None


def test_a_run_warns_of_engine_drift(config, tmp_path, fake):
    sample = fake.sample

    def flattened(prompt, body):
        found = sample(prompt, {**body, "temperature": 3.0})
        if "logprobs" in found:
            values = found["logprobs"]["token_logprobs"]
            found["logprobs"] = {"token_logprobs": [x - 0.5 for x in values]}
        return found

    fake.sample = flattened
    train(config())
    events = read_jsonl(tmp_path / "run" / "events.jsonl")
    assert [e["name"] for e in events if e["event"] == "signal"] == ["engine_drift"]


# --- refused at the start --------------------------------------------------------------------


def test_the_folders_of_the_runs_models_are_never_overwritten(config, gpt2_pair):
    for folder, setting in zip(gpt2_pair, ("student.path", "teacher.path"), strict=True):
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(UsageError, match=f"weights is {setting}.*on a copy"):
            prepare(config(server={"weights": str(folder)}))
        assert (folder / "model.safetensors").read_bytes() == before


def test_a_student_server_without_weights_folder_or_off_this_machine_is_refused(config):
    with pytest.raises(UsageError, match=r"student\.server\.weights is missing"):
        prepare(config(server={"weights": None}))
    with pytest.raises(UsageError, match="allow_remote_sync"):
        prepare(config(server={"url": "http://10.0.0.7:8000"}))


def test_a_server_without_developer_endpoints_is_refused_with_what_to_set(config, fake):
    fake.dev_mode = False
    with pytest.raises(UsageError, match="VLLM_SERVER_DEV_MODE=1"):
        train(config())


def test_a_folder_of_another_model_is_refused(config, gpt2_pair, tmp_path):
    other = shutil.copytree(gpt2_pair[1], tmp_path / "other")
    before = (other / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"student has \[48\] there"):
        train(config(server={"weights": str(other)}))
    assert (other / "model.safetensors").read_bytes() == before


def test_weights_keep_the_division_into_files_and_the_dtype_of_the_folder(gpt2_pair, tmp_path):
    model = load_model(trained_settings(gpt2_pair[0]), "student")
    model.model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    folder = tmp_path / "shards"
    files = sorted(folder.glob("model*.safetensors"))
    assert len(files) > 1
    names = {file.name: set(load_file(file)) for file in files}
    with torch.no_grad():
        for weight in model.model.parameters():
            weight.add_(0.01)
    write_weights(model, folder)
    assert {file.name: set(load_file(file)) for file in folder.glob("*.safetensors")} == names
    again = load_model(trained_settings_with_tokenizer(folder, gpt2_pair[0]), "student")
    probe = tuple(range(3, 12))
    assert np.array_equal(probe_logprobs(again, probe), probe_logprobs(model, probe))
    model.model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    write_weights(again, tmp_path / "half")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert not [f for f in folder.iterdir() if f.name.startswith(".tutelage")]


def trained_settings_with_tokenizer(folder, source):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, folder)
    return trained_settings(folder)
