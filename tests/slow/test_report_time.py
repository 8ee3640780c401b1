"""A long run is reported in a minute and a gigabyte."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

STEPS = 10_000
EVERY = 100
ROLLOUTS = 100_000_000  # bytes
CHILD = r"""
import re, sys, time
from tutelage.cli import main
code = main(["report", *sys.argv[1:]])
kilobytes = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]
print(time.process_time(), int(kilobytes) // 1024, file=sys.stderr)
sys.exit(code)
"""


def write_long_run(folder: Path, like: Path) -> None:
    """A run of `STEPS` steps whose records have the shape of those of the run `like`."""
    folder.mkdir()
    draw = random.Random(0)
    records = [json.loads(line) for line in (like / "metrics.jsonl").read_text().splitlines()]
    kinds = {r["kind"]: r for r in records}
    position = json.loads((like / "positions.jsonl").read_text().splitlines()[0])

    def jitter(value: float) -> float:
        return value * (0.9 + 0.2 * draw.random())

    with (folder / "metrics.jsonl").open("w") as out:
        for step in range(STEPS + 1):
            for kind in ("train",) if step % EVERY else ("train", "eval"):
                if kind == "eval" or step:
                    varied = dict(kinds[kind])
                    if kind == "train":
                        varied = {
                            k: jitter(v) if type(v) is float else v for k, v in varied.items()
                        }
                    out.write(json.dumps({**varied, "step": step}) + "\n")
    longest = 2048
    edges = [round(i * longest / 32) for i in range(33)]
    with (folder / "positions.jsonl").open("w") as out:
        for step in range(1, STEPS + 1):
            bins = {key: [jitter(0.5) for _ in range(32)] for key in position["bins"]}
            out.write(json.dumps({"step": step, "bins": bins, "edges": edges}) + "\n")
    rows = [json.loads(r) for r in (like / "rollouts/step-0.jsonl").read_text().splitlines()]
    (folder / "rollouts").mkdir()
    each = ROLLOUTS // (STEPS // EVERY + 1)
    for step in range(0, STEPS + 1, EVERY):
        written = number = 0
        with (folder / f"rollouts/step-{step}.jsonl").open("w") as out:
            while written < each:
                row = {**rows[number % len(rows)], "id": f"q{number}", "policy_step": step}
                for key in ("completion_ids", "tokens"):
                    row[key] = row[key] * 40
                row["text"] = row["text"] * 40
                row["scores"] = {k: v * 40 for k, v in row["scores"].items()}
                row["likely"] = {
                    side: {k: v * 40 for k, v in lists.items()}
                    for side, lists in row["likely"].items()
                }
                written += out.write(json.dumps(row) + "\n")
                number += 1
    (folder / "environment.json").write_text((like / "environment.json").read_text())
    config = yaml.safe_load((like / "config.yaml").read_text())
    config["run"]["steps"] = STEPS
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_ten_thousand_steps_with_a_hundred_megabytes_of_rollouts(gpt2_pair, tmp_path):
    import tutelage
    from helpers import tiny_run

    like = tutelage.train(tiny_run(tmp_path, *gpt2_pair, lr=3e-3)()).run
    write_long_run(tmp_path / "long", like)
    size = sum(f.stat().st_size for f in (tmp_path / "long/rollouts").iterdir())
    assert size >= ROLLOUTS
    words = [sys.executable, "-c", CHILD, str(tmp_path / "long")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seconds, megabytes = map(float, done.stderr.split()[-2:])
    page = tmp_path / "long" / "report.html"
    size = page.stat().st_size / 1e6
    print(f"{seconds:.1f} processor seconds, {megabytes:.0f} MiB, a page of {size:.1f} MB")
    assert seconds < 60
    assert megabytes < 1000
    assert size < 15
