"""A run directory that someone wrote to harm whoever looks at it."""

import json
from pathlib import Path
from typing import Any

MARKUP = (
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "\" onmouseover='alert(3)' autofocus onfocus=alert(4) x=\"",
    "'><img src=x onerror=alert(5)>",
    "<a href='javascript:alert(6)'>look</a>",
    "<b>bold</b> &lt;i&gt; {{ 7 * 7 }} {% raw %} ${8 * 8}",
    "\u202ereversed\u202c \u2066isolated\u2069",
    "\x1b[31mred\x1b[0m \x1b]8;;https://example.invalid\x07link\x1b]8;;\x07 bell\x07",
    "half \ud800 a character",
    "=HYPERLINK('https://example.invalid')",
)
NESTED = "[" * 100_000


def _line(record: dict[str, Any]) -> str:
    """With NaN, as a careless writer would."""
    return json.dumps(record) + "\n"


def write_hostile_run(folder: Path, like: Path) -> Path:
    """The run `like` with every text replaced, every series broken, and files missing."""
    folder.mkdir()
    everything = " ".join(MARKUP)
    nan = float("nan")
    config = (like / "config.yaml").read_text()
    (folder / "config.yaml").write_text(
        config.replace("student:", f"# {json.dumps(everything)}\nstudent:", 1), encoding="utf-8"
    )
    (folder / "environment.json").write_text(
        json.dumps({everything: everything, "versions": {MARKUP[0]: MARKUP[4]}})
    )
    records = [json.loads(line) for line in (like / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.jsonl").open("w") as out:
        for i, record in enumerate(records):
            broken = {f"accuracy/source/{MARKUP[i % len(MARKUP)]}": 0.5, MARKUP[3]: 1.0}
            out.write(_line({**record, "loss": nan, "grad_norm": 1e308 * 10, **broken}))
            out.write(_line({**record, "kl/reverse": "a lot", "step": "soon"}))
            out.write(_line({"kind": [record["kind"]], "step": 10**400}))
        out.write("{broken\n[1, 2]\n" + NESTED + "\nnull\n\n" + '{"kind": "train", "step": 9')
    with (folder / "events.jsonl").open("w") as out:
        for text in MARKUP:
            event = {"event": "signal", "name": text, "step": text, "evidence": text}
            out.write(_line({**event, "advice": text}))
        out.write(_line({"event": "signal", "name": 3, "evidence": None, "advice": ["x"]}))
    check = {"looks": [{"teacher": everything, "verdict": everything, "reasons": [3]}, 7]}
    (folder / "check.json").write_text(json.dumps({**check, "reasons": "none"}))
    (folder / "positions.jsonl").write_text(
        _line({"step": 1, "edges": [0, 1, 2], "bins": {"tokens": [nan, 1], "kl/reverse": [nan, 1]}})
        + _line({"step": 2, "edges": [0, 1, 2], "bins": {"tokens": [1, 1], "kl/reverse": ["x", 1]}})
        + _line({"step": 3, "edges": "0", "bins": []})
        + _line({"step": 4, "edges": [0, 1], "bins": {"tokens": [1], "kl/reverse": [1]}})
    )
    (folder / "rollouts").mkdir()
    for step in (0, 6):
        with (folder / f"rollouts/step-{step}.jsonl").open("w") as out:
            for i, text in enumerate((*MARKUP, "x" * 1_000_000)):
                row = {"id": text[:50], "index": i, "question": text, "answer": text, "text": text}
                scores = {"reward/mean": [nan, None, 0.5]}
                row |= {"reward": nan if i % 2 else 1.0, "scores": scores}
                out.write(_line({**row, "tokens": [text], "completion_ids": [1]}))
            out.write(_line({"id": None, "text": 3, "scores": [], "reward": "yes"}))
    (folder / "rollouts/step-x.jsonl").write_text("no")
    (folder / "rollouts/step-7.jsonl").mkdir()
    return folder
