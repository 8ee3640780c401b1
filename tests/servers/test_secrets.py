"""A key that is given to every verb, in every way a key is given, turns up nowhere."""

import os
import re
import subprocess
import sys

import fake as f
import pytest
import yaml

from helpers import sums, write_jsonl
from tutelage.cli import VERBS, main
from tutelage.config import dump_config, parse_config
from tutelage.errors import UsageError
from tutelage.secrets import redacted

CANARY = "sk-canary-4242-0001"
OTHER = "sk-canary-4242-wrong"
LEAK = re.compile(rb"canary-4242")


@pytest.fixture
def place(settings, serve, gpt2_pair, tmp_path, monkeypatch):
    """Settings with a served teacher that wants the key, and a clean folder to run in."""
    monkeypatch.setenv("TEACHER_KEY", CANARY)
    monkeypatch.setenv("WRONG_KEY", OTHER)
    monkeypatch.setenv("HF_TOKEN", f"hf_{CANARY}")
    fake = serve(gpt2_pair[0], max_logprobs=-1, key=CANARY)
    server = {"url": fake.url, "key_env": "TEACHER_KEY", "retries": 1}
    server["cache"] = str(tmp_path / "cache")
    (tmp_path / "parity.py").write_text("def judge(prompt, text):\n    return len(text) % 2 == 0\n")
    config = settings(
        teacher={"path": str(gpt2_pair[0]), "server": server},
        data={"verifier": {"type": "function", "path": f"{tmp_path}/parity.py:judge"}},
        check={"questions": 2, "samples": 2, "continued": 0, "budget": 0},
        align={"questions": 4, "budget": 6000},
        cold_start={"questions": 4, "check": False, "epochs": 1},
        run={"steps": 1},
    )
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config))
    monkeypatch.chdir(tmp_path)
    return fake, path


def require_no_leak(folder, capfd):
    for stream in capfd.readouterr():
        assert not LEAK.search(stream.encode()), stream
    for file in folder.rglob("*"):
        assert not LEAK.search(str(file).encode())
        if file.is_file():
            assert not LEAK.search(file.read_bytes()), file


def test_the_key_of_a_server_reaches_no_file_and_no_screen(place, tmp_path, capfd):
    fake, path = place
    teacher_key = f"Bearer {CANARY}"
    prompts = str(write_jsonl(tmp_path / "few.jsonl", sums(12)))
    config = ["-c", str(path)]
    run = str(parse_config(yaml.safe_load(path.read_text())).run.dir)
    model = parse_config(yaml.safe_load(path.read_text())).student.path
    verbs = {
        "plan": [*config],
        "preview": [*config],
        "doctor": [*config],
        "check": [*config, "--output", "check.json"],
        "train": [*config],
        "align": [*config, "-o", "align"],
        "eval": [model, "--prompts", prompts, "--verifier", "numeric", "--max-new-tokens", "4"],
        "explain": [run],
        "watch": [run],
        "report": [run],
        "push": [run, "someone/student"],
        "presets": [],
    }
    codes = {"check": 3, "push": 6}  # push has no network
    served = {"doctor", "check", "train", "align"}
    rescue = {
        "prompts": ["prompts", prompts, "-o", "clean.jsonl"],
        "cold-start": ["cold-start", *config, "-o", "cold"],
        "controls": ["controls", *config, "-o", "controls", "--seeds", "2"],
    }
    others = {"demo", "lab", "rescue", "init", "completion"}  # these know no server
    assert VERBS.keys() - verbs.keys() - others == {"export"}
    main(["export", "verl", *config, "-o", "exported"])
    for verb, words in verbs.items():
        asked = len(fake.keys)
        assert main([verb, *words]) == codes.get(verb, 0), verb
        assert (teacher_key in fake.keys[asked:]) == (verb in served), verb
    for words in rescue.values():
        assert main(["rescue", *words]) == 0, words
    assert main(["train", *config, "--resume", "--run.steps", "2"]) == 0
    require_no_leak(tmp_path, capfd)


def test_a_server_that_repeats_the_key_in_its_faults_spreads_it_nowhere(place, tmp_path, capfd):
    fake, path = place
    wrong = ["--teacher.server.key_env", "WRONG_KEY", "--run.dir", "other"]
    for verb in ("doctor", "check", "train", "align"):
        assert main([verb, "-c", str(path), *wrong]) == 6
    assert f"Bearer {OTHER}" in fake.keys
    fake.faults["/v1/completions"] = [f.status(503, f"busy with {CANARY}")] + [
        f.status(500, f"lost {CANARY}")
    ] * 9
    assert main(["train", "-c", str(path)]) == 6
    told = capfd.readouterr()
    assert "***" in told.err
    assert not LEAK.search(f"{told.out}{told.err}".encode())
    require_no_leak(tmp_path, capfd)


@pytest.mark.parametrize(
    "words",
    [
        ["--teacher.server.url", f"http://me:{CANARY}@127.0.0.1:1"],
        ["--teacher.server", f"http://me:{CANARY}@127.0.0.1:1"],
        ["--teacher.server.key_env", CANARY],
        ["--teacher.server.key_env", CANARY.replace("-", "_")],
        ["--teacher.server.key", CANARY],
        ["--teacher.server.headers", f"{{Authorization: Bearer {CANARY}}}"],
        ["--teacher.path", f"https://me:{CANARY}@hub/model"],
        ["--data.prompts", f"https://me:{CANARY}@host/rows.jsonl"],
        ["--data.prompts", f"hub:https://me:{CANARY}@host/rows@0"],
        ["--run.dir", f"\0https://me:{CANARY}@host"],
    ],
)
def test_a_key_in_a_place_that_takes_none_is_refused_and_not_repeated(
    place, tmp_path, capfd, words
):
    _, path = place
    assert main(["train", "-c", str(path), "--run.dir", "other", *words]) in (2, 4, 6)
    told = capfd.readouterr().err
    assert told.startswith("tutelage: ")
    assert not LEAK.search(told.encode()), told
    require_no_leak(tmp_path, capfd)
    assert not (tmp_path / "other").exists()


def test_a_traceback_shows_no_key(tmp_path):
    program = (
        "import sys, threading, tutelage.planning, tutelage.cli as cli\n"
        "from tutelage.secrets import keep_secret\n"
        "def crash(*_, **__):\n"
        "    import os\n"
        "    keep_secret('sk-canary-4242-kept')\n"
        "    text = f\"{os.environ['A_KEY']} and sk-canary-4242-kept at https://u:canary-4242@h\"\n"
        "    thread = threading.Thread(target=lambda: int(text))\n"
        "    thread.start(); thread.join()\n"
        "    raise RuntimeError(text)\n"
        "tutelage.planning.plan = crash\n"
        "sys.exit(cli.main(['plan', '--student.path', 's', '--teacher.path', 't',"
        " '--data.prompts', 'p']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "A_KEY": CANARY},
        cwd=tmp_path,
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr.count(b"Traceback") == 2
    assert b"RuntimeError: *** and *** at https://***@h" in done.stderr
    assert not LEAK.search(done.stderr + done.stdout)


def test_what_hides_keys_leaves_other_text_alone(monkeypatch):
    monkeypatch.setenv("SHORT_TOKEN", "the")
    text = "the teacher's server http://127.0.0.1:8000/v1: me@host, http://h/a@b"
    assert redacted(text) == text


def test_a_key_that_no_header_takes_is_refused_without_being_shown(place, monkeypatch, tmp_path):
    from tutelage.models.served.client import Client

    _, path = place
    server = parse_config(yaml.safe_load(path.read_text())).teacher_model.server
    for value in ("sk-canary\n4242", "sk canary-4242", "sk-canary-4242-\u00e9"):
        monkeypatch.setenv("TEACHER_KEY", value)
        with pytest.raises(UsageError, match="TEACHER_KEY holds no API key") as caught:
            Client(server, "teacher")
        assert "4242" not in str(caught.value)
