"""The verb: files, stops and resumes, self-teachers, refusals."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import read_jsonl
from tutelage import align
from tutelage.alignment.bench import kind_of, plant
from tutelage.alignment.job import prepare_bench
from tutelage.alignment.spines import read_by
from tutelage.cli import main
from tutelage.config import ReliabilityWeight, parse_config
from tutelage.credit import read_table
from tutelage.errors import DataError, Preempted, UsageError
from tutelage.lab.embedded import model_path

ROOT = Path(__file__).parents[2]


def changed(tree, section, **values):
    return parse_config({**tree, section: {**tree.get(section, {}), **values}})


def test_a_stopped_alignment_goes_on_and_ends_the_same(tree, tmp_path):
    config = parse_config(tree)
    undisturbed = align(config, tmp_path / "whole").to_dict()
    stops = []

    def stop(record):
        if record["kind"] == "plan" and len(stops) < 3:
            stops.append(record)
            os.kill(os.getpid(), signal.SIGTERM)

    for attempt in range(3):
        with pytest.raises(Preempted, match="--resume"):
            align(config, tmp_path / "cut", resume=attempt > 0, observer=stop)
        ledger = tmp_path / "cut" / "rollouts.jsonl"
        torn = ledger.read_bytes()
        ledger.write_bytes(torn[: len(torn) - 7])  # as a kill in mid-write leaves it
    assert align(config, tmp_path / "cut", resume=True).to_dict() == undisturbed
    units = [record["unit"] for record in read_jsonl(ledger)]
    assert len(units) == len(set(units)) > 0
    for name in ("alignment.json", "tokens.jsonl", "reliability.json"):
        assert (tmp_path / "cut" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_resuming_with_other_settings_is_refused(tree, tmp_path):
    align(parse_config(tree), tmp_path / "out")
    with pytest.raises(UsageError, match="these differ"):
        align(changed(tree, "align", budget=7000), tmp_path / "out", resume=True)
    with pytest.raises(UsageError, match="--overwrite"):
        align(parse_config(tree), tmp_path / "out")


def test_the_command_prints_a_plan_first_and_leaves_a_table_that_training_reads(
    tree, tmp_path, capsys
):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(tree))
    assert main(["align", "-c", str(file), "-o", str(tmp_path / "out"), "--json"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err.startswith("6 questions, ")
    teacher = found["teachers"]["teacher"]["objectives"]
    assert set(teacher) == {"objective", "reverse_kl", "forward_kl"}
    assert set(teacher["objective"]["by"]) == {"outcome", "depth", "entropy", "token"}
    positions, entropies, weights = read_table(str(tmp_path / "out" / "reliability.json"))
    assert weights.shape == (len(positions) + 1, len(entropies) + 1)
    assert weights.max() == 1
    ReliabilityWeight(table=str(tmp_path / "out" / "reliability.json"))
    spine = read_jsonl(tmp_path / "out" / "tokens.jsonl")[0]
    node = spine["nodes"][0]
    assert len(node["children"]) == len(node["student"]) == len(node["success"])
    assert sum(node["student"]) == pytest.approx(1)
    told = node["teachers"]["teacher"]["objective"]
    assert {"dot", "advantage", "cosine", "move"} < set(told)
    assert len(spine["moves"]["teacher"]) == len(spine["tokens"])
    assert spine["moves"]["teacher"][node["depth"]] == pytest.approx(told["move"])
    assert len(found["questions"]) <= 6
    assert sum(q["teacher"]["advantage"] for q in found["questions"].values()) != 0


def test_a_teacher_that_is_the_student_is_told_and_gives_no_table(tree, tmp_path):
    config = changed(tree, "teacher", path=tree["student"]["path"])
    found = align(config, tmp_path / "out").pooled["teacher", "objective"]
    assert found.dot.value == pytest.approx(0, abs=1e-15)
    assert found.advantage.value == 0
    assert found.signal
    assert found.alignment is None
    assert "moves the student nowhere" in " ".join(found.warnings)
    assert not (tmp_path / "out" / "reliability.json").exists()


def test_several_teachers_share_one_tree(tree, tmp_path):
    config = changed(tree, "align", teachers={"other": {"path": str(model_path("same_data"))}})
    found = align(config, tmp_path / "out").to_dict()
    assert set(found["teachers"]) == {"teacher", "other"}
    assert set(found["differences"]) == {"teacher - other"}
    assert set(found["best_teacher"].values()) <= {"teacher", "other", None}


def test_a_self_teacher_is_shown_another_rollout_than_the_one_it_scores(tree):
    path = tree["student"]["path"]
    turn = {"path": path, "user_prompt": "{correct}{question}"}
    bench = prepare_bench(changed(tree, "align", teachers={"self": turn}, samples=12))
    assert bench.candidates[1].model is bench.student
    grown = plant(bench)
    read = {name: spine.views["self"] for name, spine in grown.spines.items()}
    assert {ids is None for ids in read.values()} == {True, False}  # both are looked at below
    for name, ids in read.items():
        spine = grown.spines[name]
        if ids is None:
            assert all(
                node.q[1].size and (node.q[1] != node.q[1]).all()
                for node in grown.nodes
                if node.spine == name
            )
        else:
            assert len(ids) > len(spine.rollout.prompt_ids)
    spine = next(s for s in grown.spines.values() if s.right)
    assert read_by(bench.candidates[1], spine.rollout, [spine.rollout], None, True) is None


def test_ready_made_contexts_become_self_teachers(tree):
    config = changed(tree, "align", contexts=["answer", "demonstration"])
    names = [candidate.name for candidate in prepare_bench(config).candidates]
    assert names == ["teacher", "self:answer", "self:demonstration"]


def test_what_cannot_be_aligned_is_refused(tree, tmp_path, gpt2_pair):
    cases = [
        (("data", {"verifier": None}), UsageError, "needs data.verifier"),
        (("rollout", {"top_p": 0.9}), UsageError, "leave rollout.top_p 1"),
        (("align", {"budget": 100}), UsageError, "not enough"),
        (("align", {"teachers": {"x": {"path": str(gpt2_pair[0])}}}), UsageError, "disagree"),
        (("data", {"verifier": {"type": "pattern", "pattern": "(never)"}}), DataError, "easier"),
        (("rollout", {"max_new_tokens": 4000}), UsageError, "reads .* tokens"),
        (
            ("objective", {"type": "full", "return_to_go": 0.9}),
            UsageError,
            "no move at a single state",
        ),
    ]
    for (section, values), error, message in cases:
        with pytest.raises(error, match=message):
            align(changed(tree, section, **values), tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"cap": 4, "floor": 5}, "must not be below floor"),
        ({"spines": 9}, "are chosen among samples"),
        ({"teachers": {"teacher": {"path": "x"}}}, "is taken"),
        ({"objectives": {"objective": {"type": "full"}}}, "the run's own"),
    ],
)
def test_wrong_settings_cannot_be_written(tree, section, message):
    with pytest.raises(UsageError, match=message):
        changed(tree, "align", **section)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(" ", "space"), ("12", "number"), (" the", "word"), ("##", "mark"), ("<|end|>", "special")],
)
def test_tokens_are_sorted_by_what_they_are(text, kind):
    assert kind_of(text) == kind


def test_the_recipe_of_the_embedded_models_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    problems = tmp_path / "problems.jsonl"
    script = ROOT / "recipes" / "embedded" / "prepare.py"
    subprocess.run([sys.executable, str(script), str(problems)], check=True)
    small = {"questions": 4, "spines": 2, "samples": 4, "rollouts": 4, "budget": 20000}
    words = [word for key, value in small.items() for word in (f"--align.{key}", str(value))]
    recipe = ROOT / "recipes" / "embedded" / "align.yaml"
    asked = ["-c", str(recipe), "-o", str(tmp_path / "out"), "--data.prompts", str(problems)]
    assert main(["align", *asked, *words]) == 0
    out = capsys.readouterr().out
    for teacher in ("teacher", "same_data", "incompatible"):
        assert f"\n{teacher}" in out


def test_killed_at_any_moment_it_goes_on_and_counts_every_rollout_once(tree, tmp_path):
    """SIGKILL at random times, from before the plan to after the last rollout."""
    undisturbed = align(parse_config(tree), tmp_path / "whole").to_dict()
    file, cut = tmp_path / "run.yaml", tmp_path / "cut"
    file.write_text(json.dumps(tree))
    code = "import sys; from tutelage.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "align", "-c", str(file), "-o", str(cut)]
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)  # shown where it fails
    luck, seen = random.Random(seed), []
    for _ in range(3):
        resume = ["--resume"] if (cut / "config.yaml").exists() else []
        job = subprocess.Popen([*command, *resume], stdout=subprocess.DEVNULL)
        wanted = luck.choice(["config.yaml", "tree.json", "rollouts.jsonl"])
        deadline = time.monotonic() + 60
        while job.poll() is None and not (cut / wanted).exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(luck.choice([0.0, 0.01, 0.1, 0.3]))
        job.kill()
        job.wait()
        ledger = cut / "rollouts.jsonl"
        seen.append(ledger.read_bytes().count(b"\n") if ledger.exists() else 0)
    assert seen == sorted(seen)  # nothing that was finished is ever taken back
    resume = (cut / "config.yaml").exists()
    assert align(parse_config(tree), cut, resume=resume).to_dict() == undisturbed
    units = [record["unit"] for record in read_jsonl(cut / "rollouts.jsonl")]
    assert len(units) == len(set(units)) > 0
    assert (cut / "alignment.json").read_text() == (tmp_path / "whole/alignment.json").read_text()


def test_killed_before_its_tree_was_written_it_plants_the_same_one(tree, tmp_path):
    undisturbed = align(parse_config(tree), tmp_path / "whole").to_dict()
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    for name in ("tree.json", "nodes.jsonl", "rollouts.jsonl", "alignment.json"):
        (cut / name).unlink()
    assert align(parse_config(tree), cut, resume=True).to_dict() == undisturbed
