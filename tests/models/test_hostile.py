"""A folder of a model is data: nothing in it runs, whatever it holds."""

import ast
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import save_tiny_llama, sums, tiny_run, write_jsonl
from tutelage.cli import main
from tutelage.config import ModelConfig, dump_config
from tutelage.data.render import render_one
from tutelage.errors import DataError, UsageError
from tutelage.models.loading import load_model, load_tokenizer
from tutelage.types import Message, Prompt

SOURCES = Path(__file__).parents[2] / "src" / "tutelage"


class Touches:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    pickle.loads(pickle.dumps(Touches(path))).close()
    assert path.exists()  # it sings
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def model(tmp_path):
    return save_tiny_llama(tmp_path / "model")


def verbs(model, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(8))
    pair = [f"--{side}.path={model}" for side in ("student", "teacher")]
    run = [*pair, f"--data.prompts={prompts}", f"--run.dir={tmp_path / 'run'}"]
    few = ["--rollout.max_new_tokens=4", "--rollout.prompts_per_step=2", "--run.steps=1"]
    evaluate = ["--prompts", str(prompts), "--verifier", "numeric", "--max-new-tokens", "4"]
    return [
        ["plan", *run, *few],
        ["preview", *run, *few],
        ["train", *run, *few, "--data.held_out=2"],
        ["eval", str(model), *evaluate],
    ]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_pickled_weights_are_refused_unopened(model, canary, tmp_path, capsys, name):
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Touches(canary)))
    for words in verbs(model, tmp_path):
        if words[0] != "preview":  # it needs no weights
            assert main(words) == 2
            assert "pickle" in capsys.readouterr().err


def test_pickles_beside_the_weights_are_left_alone(model, canary, tmp_path):
    for name in (
        *("pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "training_args.bin"),
        *("scheduler.pt", "rng_state.pth", "tokenizer.pkl", "spiece.model", "added_tokens.pkl"),
    ):
        (model / name).write_bytes(pickle.dumps(Touches(canary)))
    for words in verbs(model, tmp_path):
        assert main(words) == 0


def test_a_pickle_named_like_safe_weights_is_damaged_weights(model, canary, tmp_path, capsys):
    (model / "model.safetensors").write_bytes(pickle.dumps(Touches(canary)))
    for words in verbs(model, tmp_path):
        if words[0] != "preview":
            assert main(words) == 2
            assert "header" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "key", "classes"),
    [
        ("config.json", "AutoModelForCausalLM", "evil.Evil"),
        ("config.json", "AutoConfig", "evil.Evil"),
        ("tokenizer_config.json", "AutoTokenizer", ["evil.Evil", "evil.Evil"]),
    ],
)
@pytest.mark.parametrize("own_type", [False, True])
def test_code_that_a_folder_brings_never_runs(
    model, canary, tmp_path, file, key, classes, own_type
):
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil: pass\n")
    content = json.loads((model / file).read_text())
    content["auto_map"] = {key: classes}
    if own_type:
        content |= {"model_type": "evil", "tokenizer_class": "Evil", "architectures": ["Evil"]}
    (model / file).write_text(json.dumps(content))
    for words in verbs(model, tmp_path):
        assert main(words) == 0 or own_type


ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.popen('touch CANARY').read() }}",
    "{{ lipsum.__globals__['os'].system('touch CANARY') }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ ('{0.__cla' ~ 'ss__}').format(messages) }}",
    "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    "{% set x = messages | attr('__class__') %}{{ x.__name__ }}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "{% include '/etc/passwd' %}",
    "{{ raise_exception.__globals__ }}",
    "{{ strftime_now.__globals__ }}",
    "{{ tojson.__globals__ }}",
    "{{ messages.pop() }}{{ messages.clear() }}",
)


@pytest.mark.parametrize("escape", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(model, canary, escape):
    tokenizer = load_tokenizer(ModelConfig(path=str(model)), "teacher")
    tokenizer.chat_template = f"BEGIN{escape.replace('CANARY', str(canary))}END"
    prompt = Prompt(id="a", messages=(Message("user", "Hm?"),))
    settings = ModelConfig(path=str(model))
    try:
        text = tokenizer.decode(list(render_one(prompt, tokenizer, settings, role="teacher")))
    except DataError:
        return
    assert "__globals__" not in text
    assert "class" not in text
    assert "root:" not in text


def test_a_template_that_grows_is_stopped_at_its_memory(model):
    tokenizer = load_tokenizer(ModelConfig(path=str(model)), "teacher")
    tokenizer.chat_template = "{{ ('x' * 3000000000) | length }}"
    prompt = Prompt(id="a", messages=(Message("user", "Hm?"),))
    with pytest.raises(DataError, match="prompt 'a'"):
        render_one(prompt, tokenizer, ModelConfig(path=str(model)), role="teacher")


# --- pickles ---------------------------------------------------------------------------------

OUR_PIPES = {"data/verify.py", "data/function_worker.py", "data/reasoning_gym_worker.py"}
"""Between a run and the processes it started itself; never a file, never from outside."""


def test_no_module_reads_or_writes_a_pickle():
    found = set()
    for path in SOURCES.rglob("*.py"):
        place = str(path.relative_to(SOURCES))
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = [f"{node.value.id}.{node.attr}"]
            elif isinstance(node, ast.keyword) and node.arg in (
                "allow_pickle",
                "trust_remote_code",
                "weights_only",
            ):
                value = getattr(node.value, "value", None)
                names = [] if value is False and node.arg != "weights_only" else [str(node.arg)]
            else:
                continue
            banned = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            banned |= {"torch.load", "torch.save", "np.save", "yaml.unsafe_load", "yaml.full_load"}
            banned |= {"allow_pickle", "trust_remote_code", "weights_only"}
            found |= {place for name in names if name in banned}
    assert found == OUR_PIPES


def test_a_whole_run_unpickles_nothing_and_leaves_no_pickle(gpt2_pair, tmp_path):
    config = tiny_run(tmp_path, *gpt2_pair, lr=1e-3)()
    (tmp_path / "run.yaml").write_text(dump_config(config))
    program = (
        "import sys\n"
        "loaded = []\n"
        "def hook(event, details):\n"
        "    if event == 'pickle.find_class': loaded.append(details)\n"
        "sys.addaudithook(hook)\n"
        "import pickle; pickle.loads(pickle.dumps(int)); assert loaded; loaded.clear()\n"
        "from tutelage.cli import main\n"
        "run = sys.argv[1] + '/run'\n"
        "for words in (['train', '-c', sys.argv[1] + '/run.yaml'],\n"
        "              ['train', '-c', sys.argv[1] + '/run.yaml', '--resume', '--run.steps=5'],\n"
        "              ['explain', run], ['report', run]):\n"
        "    assert main(words) == 0, words\n"
        "print('UNPICKLED', loaded)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "UNPICKLED []" in done.stdout
    kept = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert len(kept) > 10
    assert {file.suffix for file in kept} <= {
        *(".json", ".jsonl", ".yaml", ".safetensors", ".html", ".md", ".jinja", ""),  # the lock
    }
    for file in kept:
        assert file.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")


def test_a_damaged_model_is_never_code_either(model):
    (model / "config.json").write_text(json.dumps({"model_type": "../../evil"}))
    with pytest.raises(UsageError):
        load_model(ModelConfig(path=str(model)), "teacher")


def test_a_damaged_index_never_leads_to_a_pickle(model, canary, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: canary.touch())
    (model / "model.safetensors").rename(model / "model-none.safetensors")
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touches(canary)))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UsageError):
        load_model(ModelConfig(path=str(model)), "teacher")
    (model / "model.safetensors.index.json").unlink()
    with pytest.raises(UsageError):
        load_model(ModelConfig(path=str(model)), "teacher")
