"""What is drawn: redrawn on a terminal, plain lines elsewhere, and nothing a terminal obeys."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest
from rich.cells import cell_len
from rich.console import Console
from writing import append, eval_record, make_run, step_record

from helpers import sums, write_jsonl
from tutelage.cli import main
from tutelage.cli.progress import Display
from tutelage.watching.drawing import Picture, sparkline
from tutelage.watching.view import View

HOSTILE = "\x1b]0;evil\x07\x1b[2J\x9b31m\u202egnp.exe\x1b]52;c;ZXZpbA==\x1b\\"


EXPECTED = """\
runs/first  running
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━╸             step 8 of 10  5 s left

accuracy     ▁▁▁▁▁████                          0.250 -> 0.500 [0.450, 0.550]
reverse KL    █▄▃▂▂▁▁▁                          1.000 -> 0.125 nats
shared mass   ▁▅▆▇▇███                          0.900 -> 0.988
entropy gap   █▄▃▂▂▁▁▁                          0.200 -> 0.025 nats
length        ▁▂▃▄▅▆▇█                          18.0 -> 25.0 tokens, 25% cut off

a step       █████████████▓▓▓▓▓▓▓▓▓▓▒▒▒  1 s: rollout 50%, update 40%, score 10%

! step 4, drift: it drifts. stop it.
"""


def some_view(steps=8):
    view = View(steps=10, evaluate_every=5)
    view.add(eval_record(0, 0.25))
    for step in range(1, steps + 1):
        view.add(step_record(step))
        if step == 5:
            view.add(eval_record(5, 0.5))
    return view


def drawn(picture, width, encoding="utf-8", **options):
    raw = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", newline="")
    console = Console(file=raw, width=width, highlight=False, **options)
    console.print(picture)
    raw.seek(0)
    return raw.read()


def test_a_run_is_drawn_like_this():
    picture = Picture(some_view(), name="runs/first", state="running", remaining_s=5.0)
    picture.view.warn({"step": 4, "name": "drift", "evidence": "it drifts", "advice": "stop it"})
    lines = [line.rstrip() for line in drawn(picture, 80).splitlines()]
    assert lines == EXPECTED.splitlines()


@pytest.mark.parametrize("width", [1, 8, 20, 30, 45, 60, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_it_fits_every_width_and_encoding(width, encoding):
    view = some_view()
    view.warn({"step": 4, "name": "drift", "evidence": "much too long " * 20})
    picture = Picture(view, name="runs/" + "long" * 30, state="stopped", reason="because " * 9)
    lines = drawn(picture, width, encoding).splitlines()
    assert all(cell_len(line) <= width for line in lines)


def test_sparklines_share_their_steps_and_keep_their_shape():
    rising = [(step, float(step)) for step in range(1, 101)]
    assert sparkline(rising, (0, 100), 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([(0, 1.0), (50, 2.0)], (0, 100), 10) == "▁▁▁▁██████"
    assert sparkline([(5, 1.0)], (1, 8), 8) == "    ▁▁▁▁"
    assert sparkline([(1, 3.0), (2, 3.0)], (1, 2), 40) == "▁▁"
    assert sparkline([(1, 0.0), (2, 1.0)], (1, 2), 40, is_ascii=True) == "_#"


def test_without_a_terminal_a_run_is_plain_lines(capsys):
    now = [0.0]
    with Display(10, evaluate_every=5, clock=lambda: now[0]) as display:
        display({"kind": "note", "text": f"dropped {HOSTILE}rows"})
        display(eval_record(0, 0.25))
        for step in range(1, 6):
            now[0] += 25
            display(step_record(step))
        display({"kind": "signal", "step": 5, "name": "drift", "evidence": "e", "advice": "a"})
        display(eval_record(5, 0.5))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "note: dropped gnp.exerows.",
        "step    0  accuracy 0.250 [0.200, 0.300]  reverse KL 0.500  length 17.0",
        "step 3 of 10, 1 s a step, about 13 s left",
        "step 5, drift: e. a.",
        "step    5  accuracy 0.500 [0.450, 0.550]  reverse KL 0.500  length 17.0",
    ]


def test_an_imitation_before_the_run_counts_its_own_steps(capsys):
    now = [0.0]
    with Display(10, clock=lambda: now[0]) as display:
        for record in ({**step_record(76), "of": 300}, step_record(1)):
            now[0] += 60
            display(record)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["step 76 of 300", "step 1 of 10"]


def test_a_terminal_that_is_gone_does_not_stop_the_run(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError("input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    with Display(10) as display:
        display(eval_record(0, 0.25))


# --- on a terminal -----------------------------------------------------------------------------


def in_a_terminal(words, columns=80, seconds=60, **env):
    """What a command writes to a terminal of its own, and its exit code."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "tutelage", *words],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**plain, "TERM": "xterm-256color", "LANG": "C.UTF-8", **env},
        start_new_session=True,
    )
    os.close(follower)
    said, until = b"", time.monotonic() + seconds
    while time.monotonic() < until:
        if not select.select([leader], [], [], 0.1)[0]:
            continue
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # the last writer closed it
            break
        if not chunk:
            break
        said += chunk
    process.kill()
    os.close(leader)
    return said.decode("utf-8", "strict"), process.wait()


# What rich itself sends: styles, the cursor shown and hidden, lines erased and gone up.
RICH = re.compile(r"\x1b\[(?:[0-9;]*m|\?25[hl]|2K|1A)")


def require_calm(said):
    left = RICH.sub("", said).replace("\r\n", "\n").replace("\r", "")
    assert all(c.isprintable() or c == "\n" for c in left), ascii(left)
    assert "evil" not in left
    assert "ZXZpbA" not in left
    return left


@pytest.fixture
def hostile_run(tmp_path):
    run = make_run(tmp_path / f"run{HOSTILE.replace('/', '')}")
    append(run / "metrics.jsonl", eval_record(0, 0.2))
    append(run / "metrics.jsonl", *(step_record(i, **{f"perf/{HOSTILE}_s": 9.0}) for i in (1, 2)))
    signal = {"event": "signal", "step": 2, "name": f"n{HOSTILE}", "evidence": HOSTILE + "e" * 9000}
    append(run / "events.jsonl", signal, {"event": "stopped", "exit": 7, "text": HOSTILE})
    return run


def test_a_watched_run_is_drawn_and_nothing_hostile_is_obeyed(hostile_run):
    said, code = in_a_terminal(["watch", str(hostile_run)])
    assert code == 0
    left = require_calm(said)
    assert "stopped: gnp.exe" in left
    assert "step 2 of 10" in left
    assert "gnp.exe 90%" in left
    assert re.search(r"\x1b\[[0-9;]*3[0-9]m", said), "it has colour"
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h"), "the cursor is back"
    require_calm(in_a_terminal(["watch", str(hostile_run), "--once"])[0])
    told, _ = in_a_terminal(["watch", str(hostile_run), "--json"])
    assert told.rstrip("\r\n").isprintable()


def test_no_color_and_dumb_terminals_are_respected(hostile_run):
    said, _ = in_a_terminal(["watch", str(hostile_run)], columns=40, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*(3[0-9]|9[0-9])m", said)
    plain, code = in_a_terminal(["watch", str(hostile_run)], TERM="dumb")
    assert (code, "\x1b" in plain) == (0, False)
    require_calm(plain)


def test_training_is_drawn_live_and_its_own_words_stay_harmless(gpt2_pair, tmp_path):
    name = tmp_path / f"p{HOSTILE.replace('/', '')}"
    name.mkdir()
    prompts = write_jsonl(name / "prompts.jsonl", sums(30))
    config = tmp_path / "run.yaml"
    config.write_text(
        f"student: {{path: {gpt2_pair[0]}}}\nteacher: {{path: {gpt2_pair[1]}}}\n"
        "data: {held_out: 4, verifier: numeric}\n"
        "rollout: {prompts_per_step: 4, max_new_tokens: 6}\n"
        f"run: {{dir: {tmp_path / 'run'}, steps: 3}}\n"
    )
    said, code = in_a_terminal(["train", "-c", str(config), "--data.prompts", str(prompts)])
    assert code == 0, said
    left = require_calm(said)
    assert "note: " in left
    assert "gnp.exe" in left
    assert "step 3 of 3" in left
    assert "outcome" in left
    assert "finished" in left


def test_an_error_is_told_without_its_escapes(tmp_path, capsys):
    assert main(["watch", str(tmp_path / HOSTILE.replace("/", ""))]) == 2
    require_calm(capsys.readouterr().err)
