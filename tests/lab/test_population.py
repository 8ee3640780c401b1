"""The generated population: every pair can be made alone, and what is done stays done."""

import json

import pyarrow.parquet as pq
import pytest

from tutelage.cli import main
from tutelage.diagnose.prediction import FEATURES
from tutelage.errors import UsageError
from tutelage.lab import pairing
from tutelage.lab.kept import TASKS, KeptModels
from tutelage.lab.pairing import lab_population
from tutelage.lab.population import KINDS, group_recipes, pair, seed_of


def test_what_a_pair_is_made_of_depends_on_its_number_and_task_alone():
    seen = set()
    for task in TASKS.values():
        for number in (0, 7, 23, 41):
            made, seed = pair(number, task)
            recipes = group_recipes(number // len(KINDS), task)
            assert (made, seed) == pair(number, task)
            assert recipes == group_recipes(number // len(KINDS), task)
            assert {made.student, made.teacher} <= set(recipes)
            seen.add(repr(recipes))
    assert len(seen) == 6  # numbers 0 and 7 share the models of group 0
    assert {seed_of(group) for group in range(50)}.isdisjoint(range(1, 101))  # the suites'


def test_pairs_of_a_group_share_their_models():
    task = TASKS["running"]
    recipes = group_recipes(3, task)
    models = KeptModels(None, task, recipes=recipes)
    shared = {kind.teacher for kind in KINDS.values()} | {kind.student for kind in KINDS.values()}
    assert len({models.digest(name, seed_of(3)) for name in shared}) == len(shared)
    other = KeptModels(None, task, recipes=group_recipes(4, task))
    assert models.digest("base", seed_of(3)) != other.digest("base", seed_of(4))


def test_kinds_are_what_their_names_say():
    for task in TASKS.values():
        for group in range(20):
            recipes = group_recipes(group, task)
            assert {recipes[name].start for name in ("post", "noisy", "gated")} == {"base"}
            assert recipes["backward"].style.pattern == "backward"
            assert recipes["fresh"].style.pattern == recipes["base"].style.pattern == "forward"
            assert recipes["larger"].style == recipes["base"].style
            assert recipes["larger"].size.width > recipes["base"].size.width
            assert 0.02 <= recipes["dialled"].style.other_pattern_share <= 0.3


def test_a_pair_that_is_done_is_not_done_again_and_one_made_alone_is_the_same(
    tmp_path, monkeypatch
):
    wanted = {"tasks": ["running"], "short": True}
    both = lab_population((3, 0), **wanted, output=tmp_path / "a")
    assert [row["number"] for row in both.rows] == [3, 0]
    assert [row["kind"] for row in both.rows] == ["same_data", "post_trained"]
    assert set(both.rows[0]) >= {"student_accuracy", "kl_reverse", "overlap_ratio", "surprise"} - {
        "surprise"  # after three steps nobody has a right answer to be surprised by
    }
    alone = lab_population((0,), **wanted, output=tmp_path / "b")
    assert alone.rows == both.rows[1:]
    monkeypatch.setattr(pairing, "done", None)
    assert lab_population((0,), **wanted, output=tmp_path / "a").rows == both.rows[1:]


def test_rows_become_parquet_with_null_where_nothing_was_measured(tmp_path):
    row = {"task": "mod", "number": 2, "kind": "dialled", "verdict": "go", "before": 0.25}
    row |= {"after": 0.5, "teacher": 1.0, "gain_low": 0.1, "gain_high": 0.4}
    rows = [row | dict.fromkeys(FEATURES, 0.5), row | {"number": 3, "kl_reverse": 1.5}]
    pairing.write_pairs(tmp_path / "p.parquet", rows)
    back = pq.read_table(tmp_path / "p.parquet").to_pylist()
    assert back[0] == rows[0]
    assert {k: v for k, v in back[1].items() if v is not None} == rows[1]


def test_the_command_tells_pairs_and_refuses_what_does_not_exist(tmp_path, capsys):
    words = ["lab", "population", "1", "--task", "mod", "--short", "-o", str(tmp_path), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(row["task"], row["kind"]) for row in told["pairs"]] == [("mod", "other_pattern")]
    assert main(words[:-1]) == 0
    assert "mod 1  other_pattern" in capsys.readouterr().out
    for changed in ({"tasks": ["mud"]}, {"numbers": (-1,)}, {"count": 0}):
        with pytest.raises(UsageError):
            lab_population(**changed, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()
