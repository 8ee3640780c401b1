"""Models from a hub, as its cache on disk holds them and as its client answers."""

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from tutelage.config import ModelConfig, load_config, parse_config
from tutelage.errors import ServerError, UsageError
from tutelage.models.checkpoints import keep_pinned, locate, open_folder, pin_models
from tutelage.models.loading import load_model
from tutelage.planning import plan
from tutelage.training import train

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture
def cache(llamas, tmp_path, monkeypatch) -> Path:
    """The cache of huggingface_hub with two commits of `lab/student` and one of `lab/teacher`."""
    root = tmp_path / "cache"
    for name, source, commits in (
        ("student", "untied", (FIRST, SECOND)),
        ("teacher", "teacher", (FIRST,)),
    ):
        repository = root / f"models--lab--{name}"
        for commit in commits:
            shutil.copytree(llamas[source], repository / "snapshots" / commit)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(commits[-1])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    return root


def hub_pair(settings, **student):
    return settings(student={"path": "lab/student", **student}, teacher={"path": "lab/teacher"})


def test_a_run_records_the_commits_its_models_had(settings, cache):
    result = train(hub_pair(settings))
    saved = load_config(result.run / "config.yaml")
    assert (saved.student.path, saved.student.revision) == ("lab/student", SECOND)
    assert (saved.teacher.path, saved.teacher.revision) == ("lab/teacher", FIRST)
    assert SECOND in (result.student / "README.md").read_text()


def test_a_resumed_run_keeps_its_commits_when_the_branch_moves(settings, cache):
    config = hub_pair(settings, revision="main")
    result = train(config)
    (cache / "models--lab--student" / "refs" / "main").write_text(FIRST)
    shutil.rmtree(cache / "models--lab--teacher" / "refs")  # nothing but the commit is known
    more = config.model_copy(update={"run": config.run.model_copy(update={"steps": 5})})
    assert train(more, resume=True).step == 5
    assert load_config(result.run / "config.yaml").student.revision == SECOND
    other = hub_pair(settings, revision=FIRST)
    with pytest.raises(UsageError, match=f"student.revision was '{SECOND}' and is '{FIRST}'"):
        train(other, resume=True)


def test_a_pinned_revision_is_the_one_that_is_loaded(settings, cache):
    assert locate("lab/student", "student", FIRST).name == FIRST
    assert locate("lab/student", "student").name == SECOND
    assert plan(hub_pair(settings, revision=FIRST)).student_parameters > 0
    pinned = pin_models(hub_pair(settings, revision=FIRST))
    assert pinned.student.revision == FIRST
    assert pin_models(pinned) == pinned


def test_references_and_further_teachers_are_pinned_too(settings, cache):
    config = settings(
        objective={
            "target": {"type": "extrapolated", "reference": {"path": "lab/teacher"}},
            "brake": {"coefficient": 1, "reference": {"path": "lab/student", "revision": FIRST}},
        }
    )
    further = {"more": {"path": "lab/teacher"}}
    config = parse_config({**config.model_dump(mode="json"), "align": {"teachers": further}})
    pinned = pin_models(config)
    assert pinned.align.teachers["more"].revision == FIRST
    assert pinned.objective.target.reference.revision == FIRST
    assert pinned.objective.brake.reference.revision == FIRST
    assert pinned.student.revision is None
    assert keep_pinned(config, pinned) == pinned


def test_an_adapter_trained_on_a_hub_model_names_it_and_not_the_cache(settings, cache):
    result = train(hub_pair(settings, lora={"rank": 2}))
    text = (result.checkpoint / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == "lab/student"
    assert json.loads(text)["revision"] == SECOND
    for file in ("adapter_config.json", "README.md", "config.json"):
        for folder in (result.checkpoint, result.student):
            if (folder / file).exists():
                assert str(cache) not in (folder / file).read_text()
    load_model(ModelConfig(path=str(result.checkpoint)), "student")


def test_offline_and_not_in_the_cache_is_said_with_what_to_do(cache):
    with pytest.raises(ServerError, match=r"hub cannot be reached.*hf download lab/other") as error:
        open_folder("lab/other", "teacher")
    assert error.value.exit_code == 6
    with pytest.raises(ServerError, match=f"lab/student at {'3' * 40} is not"):
        open_folder("lab/student", "student", "3" * 40)


def test_a_cache_that_lacks_weights_is_not_taken_for_the_model(cache):
    (cache / "models--lab--teacher" / "snapshots" / FIRST / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="lab/teacher has no weights"):
        open_folder("lab/teacher", "teacher")


class FakeHub:
    """Stands for huggingface_hub.snapshot_download; keeps what it was asked."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def __call__(self, repo, **wishes):
        self.asked.append((repo, wishes))
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)


def refusal(kind):
    import httpx2

    return kind(
        "404 Client Error. lab/x: not found",
        response=httpx2.Response(404, request=httpx2.Request("GET", "https://hub")),
    )


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, RevisionNotFoundError])
def test_what_the_hub_refuses_is_a_usage_error(monkeypatch, kind):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", FakeHub(refusal(kind)))
    with pytest.raises(UsageError, match=r"no directory lab/x, and the hub refuses lab/x at v1: "):
        locate("lab/x", "teacher", "v1")


def test_nothing_but_safetensors_json_and_tokenizers_is_asked_for(monkeypatch, llamas):
    from huggingface_hub.utils import filter_repo_objects

    hub = FakeHub(llamas["untied"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert open_folder("lab/x", "student", "v1").path == llamas["untied"]
    ((repo, wishes),) = hub.asked
    assert (repo, wishes["revision"]) == ("lab/x", "v1")
    wanted = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "adapter_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "vocab.json",
        "chat_template.jinja",
    }
    unwanted = {
        "pytorch_model.bin",
        "modeling_custom.py",
        "tokenization_custom.py",
        "consolidated.safetensors",
        "onnx/model.safetensors",
        "original/params.json",
        "model.gguf",
        "tf_model.h5",
        "README.md",
        "training_args.bin",
    }
    patterns = {k: wishes[k] for k in ("allow_patterns", "ignore_patterns")}
    assert set(filter_repo_objects(sorted(wanted | unwanted), **patterns)) == wanted


def test_a_directory_wins_over_a_hub_id_and_has_no_revision(llamas, tmp_path, monkeypatch):
    shutil.copytree(llamas["untied"], tmp_path / "lab" / "student")
    monkeypatch.chdir(tmp_path)
    assert locate("lab/student", "student") == Path("lab/student")
    with pytest.raises(UsageError, match="a directory has no revision"):
        locate("lab/student", "student", "main")


@pytest.mark.parametrize(
    "path", ["nowhere", "/a/b", "a/b/c", "../a", "./a/b", "~/a", "a/", "a b/c"]
)
def test_only_owner_and_name_mean_a_hub(path, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", FakeHub(AssertionError("asked")))
    with pytest.raises(UsageError, match="there is no directory"):
        locate(path, "student")


def test_eval_takes_a_hub_id(cache, settings, tmp_path, capsys):
    from tutelage.cli import main

    prompts = settings().data.prompts
    words = ["eval", "lab/student", "--revision", FIRST, "--prompts", prompts]
    limits = ["--verifier", "numeric", "--max-new-tokens", "5", "--samples", "1", "--json"]
    assert main([*words, *limits]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy/questions"] == 40


def test_code_in_a_model_folder_is_never_run(llamas, tmp_path, settings):
    folder = tmp_path / "custom"
    shutil.copytree(llamas["untied"], folder)
    (folder / "modeling_custom.py").write_text("raise SystemExit('ran')\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_custom.Custom"}
    (folder / "config.json").write_text(json.dumps(config))
    assert load_model(ModelConfig(path=str(folder)), "teacher").vocabulary == 300
    config["model_type"] = "custom"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"teacher model .* cannot be loaded"):
        load_model(ModelConfig(path=str(folder)), "teacher")
