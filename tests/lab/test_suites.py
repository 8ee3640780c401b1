"""The suites: their verdicts on made-up numbers, and the machinery on models of three steps."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

import tutelage
from tutelage.cli import main
from tutelage.errors import UsageError
from tutelage.lab import kept, running
from tutelage.lab.arms import SHORT, Continue, Distil, Greedy, Imitate, Place
from tutelage.lab.embedded import ZOO
from tutelage.lab.inner_arms import (
    MEASURES,
    OUTCOMES,
    PLACES,
    PROFILED,
    ByPlace,
    Outcomes,
    profile,
)
from tutelage.lab.kept import TASKS, KeptModels
from tutelage.lab.models import Size, Training
from tutelage.lab.running import judge_suite, lab_suites
from tutelage.lab.suites import SUITES
from tutelage.lab.verdicts import Estimate, Part, state_of, word_of


def _estimate(values):
    return Estimate(values=dict(enumerate(values)))


def test_a_part_holds_or_fails_only_where_its_whole_interval_is_on_one_side():
    clear, wide, one = (_estimate(v) for v in ([0.5, 0.52, 0.48], [0.0, 0.9, 0.3], [0.5]))
    assert state_of(clear, above=0.1, below=None) == "holds"
    assert state_of(clear, above=0.9, below=None) == "fails"
    assert state_of(clear, above=None, below=0.9) == "holds"
    assert state_of(clear, above=None, below=0.1) == "fails"
    assert state_of(wide, above=0.1, below=None) == "open"
    assert state_of(one, above=0.1, below=None) == "open"
    assert state_of(_estimate([0.0, 0.0, 0.0]), above=None, below=0.1) == "open"  # no spread
    assert state_of(_estimate([]), above=0.1, below=None) == "open"
    assert word_of(["holds", "holds"]) == "appears"
    assert word_of(["holds", "open"]) == word_of([]) == "cannot be told"
    assert word_of(["holds", "open", "fails"]) == "does not appear"
    for sides in ({}, {"above": 0.0, "below": 1.0}):
        with pytest.raises(ValueError, match="exactly one"):
            Part(says="x", of=lambda seed: 0.0, **sides)


@pytest.mark.parametrize("parts", [1, 3])
def test_verdicts_err_no_more_often_than_promised(parts):
    """5 seeds, 2,000 repetitions: the counts lie within 4 standard errors of 2.5 % at most."""
    rng, repetitions, seeds = np.random.default_rng(7), 2000, 5

    def share(word, means):
        found = 0
        for _ in range(repetitions):
            drawn = [rng.normal(mean, 0.1, seeds) for mean in means]
            states = [state_of(_estimate(v.tolist()), above=0.1, below=None) for v in drawn]
            found += word_of(states) == word
        return found / repetitions

    most = 0.025 + 4 * np.sqrt(0.025 * 0.975 / repetitions)
    # At the threshold, however clear the other parts are.
    assert share("appears", [0.1] + [0.9] * (parts - 1)) < most
    # All true, each as near to failing as can be.
    assert share("does not appear", [0.1 + 1e-9] * parts) < parts * most
    # And they do find what is there.
    assert share("appears", [0.4] * parts) > 0.9
    assert share("does not appear", [-0.2] * parts) > 0.9


# Arm of each suite -> accuracy before, after: what the published figure would look like here.
PUBLISHED = {
    "compatible": (0.3, 0.8),
    "incompatible": (0.3, 0.05),
    "same data": (0.3, 0.31),
    "from the student": (0.98, 0.3),
    "from same data": (0.98, 0.31),
    "0 %": (0.3, 0.05),
    "10 %": (0.3, 0.6),
    "50 %": (0.28, 0.7),
    "all": (0.3, 0.8),
    "overlap": (0.3, 0.79),
    "non-overlap": (0.3, 0.2),
    "non-overlap, normalised": (0.3, 0.25),
    "sampled": (0.3, 0.79),
    "k = 1": (0.3, 0.6),
    "k = 4": (0.3, 0.78),
    "k = 16": (0.3, 0.8),
    "without": (0.3, 0.05),
    "with": (0.7, 0.9),
    "X": (0.3, 0.8),
    "Y": (0.3, 0.32),
    "aligned": (0.3, 0.8),
    "between": (0.3, 0.7),
    "other": (0.3, 0.5),
    "success": (0.3, 0.8),
    "failure": (0.3, 0.05),
    "quarter": (0.1, 0.15),
    "half": (0.1, 0.6),
    "whole": (0.1, 0.3),
    "published objective": (0.1, 0.05),
    "exact objective": (0.1, 0.8),
}
ASKED = {
    "student, greedy": 0.6,
    "same data, greedy": 0.9,
    "imitation": 0.7,
    "more imitation": 0.9,
}
TEACHER = {"from the student": 0.3, "from same data": 0.31}


def _numbers(arm, work, rng, *, happens):
    noise = rng.normal(0, 0.01, 8)
    if isinstance(work, Greedy) or type(work) is Imitate:
        return {"accuracy": (ASKED[arm] if happens else 0.6) + noise[0]}
    if isinstance(work, Continue):
        teacher = [0.99, 0.8, 0.5, 0.35] if happens else [0.3] * 4
        return {"student": [0.3] * 4, "teacher": (np.array(teacher) + noise[:4]).tolist()}
    if isinstance(work, Outcomes):
        right, wrong = (0.2, 0.5) if happens else (0.5, 0.2)
        sides = zip(OUTCOMES, (right, wrong), noise, strict=False)
        return {name: dict.fromkeys(MEASURES, value + n) for name, value, n in sides}
    assert isinstance(work, Distil)
    before, after = PUBLISHED[arm] if happens else (0.3, 0.3)
    works = happens and after > before
    rise = (after - before) * 0.8 if works else 0.0
    ends = {
        "accuracy": [before, after],
        "teacher/accuracy": [TEACHER.get(arm, 0.95), None],
        "overlap/mass_student": [0.75 if happens and arm == "with" else 0.55, 0.55 + rise],
        "overlap/advantage": [-0.2, -0.2 + rise / 4],
        "entropy/gap": [0.3, 0.3 - rise / 2],
        "entropy/student": [0.3, 0.3 - (after - before) / 2],
        "entropy/teacher": [0.1, 0.1],
        "reward/mean": [-0.5, -0.1],
        "sequence_reward/auroc": [0.75 if happens else 0.5, 0.7],
    }
    numbers = {
        "steps": [0, 1],
        "curves": {
            key: [None if v is None else v + rng.normal(0, 0.01) for v in values]
            for key, values in ends.items()
        },
    }
    if isinstance(work, ByPlace):
        depth = np.arange(PLACES) / 10 if happens else np.zeros(PLACES)
        numbers["places"] = list(range(PLACES))

        def along(key, late):
            collapses = late and arm == "published objective" and key.startswith("entropy/")
            steep = depth if key == "entropy/gap" or collapses else 0
            return (ends[key][late] + steep + rng.normal(0, 0.01, PLACES)).tolist()

        numbers["profiles"] = {
            when: {key: along(key, late) for key in ends if key in PROFILED}
            for late, when in enumerate(("at first", "at last"))
        }
    return numbers


@pytest.mark.parametrize("name", SUITES)
def test_each_suite_finds_what_was_published_in_numbers_like_it_and_not_where_nothing_happens(name):
    suite, rng = SUITES[name], np.random.default_rng(len(name))

    def judged(*, happens):
        found = {
            seed: {a: _numbers(a, w, rng, happens=happens) for a, w in suite.arms.items()}
            for seed in range(1, 6)
        }
        return judge_suite(name, suite, found)

    assert judged(happens=True).word == "appears"
    nothing = judged(happens=False)
    assert nothing.word != "appears"
    told = nothing.to_dict()
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert len(told["parts"]) == len(suite.parts)
    assert all(part["interval"] for part in told["parts"])


def test_a_seed_whose_model_missed_its_target_is_left_out_and_told():
    suite, rng = SUITES["compatible"], np.random.default_rng(0)
    arm = suite.arms["compatible"]
    found = {s: {"compatible": _numbers("compatible", arm, rng, happens=True)} for s in (1, 2, 3)}
    found[3] = {"compatible": {"failed": "it samples .1 right"}}
    judged = judge_suite("compatible", suite, found)
    assert judged.failed == {3: "it samples .1 right"}
    assert [sorted(e.values) for _, e, _ in judged.parts] == [[1, 2]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every suite, one seed, models of three steps, two steps of distillation."""
    heard = []
    result = lab_suites(
        ["all"], seeds=1, short=True, output=tmp_path_factory.mktemp("lab"), observer=heard.append
    )
    return result, heard


def test_every_suite_runs_whole_and_shares_its_arms(whole):
    result, heard = whole
    assert [judged.name for judged in result.suites] == list(SUITES)
    assert {judged.word for judged in result.suites} == {"cannot be told"}  # one seed
    done = [r for r in heard if r["kind"] == "unit"]
    distinct = {(repr(arm)) for suite in SUITES.values() for arm in suite.arms.values()}
    assert len(done) == len(distinct)
    names = [path.name.split("-")[0] for path in (result.folder / "models").iterdir()]
    assert len(names) == len(set(names))
    written = json.loads((result.folder / "lab.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict()))


def test_what_is_done_is_not_done_again_and_the_page_has_each_suite(whole, capsys):
    result, _ = whole
    lines = (result.folder / "units.jsonl").read_text()
    words = ["lab", "all", "--short", "--seeds", "1", "--json", "-o", str(result.folder.parent)]
    assert main(words) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert "seed 1" not in err  # no unit
    assert (result.folder / "units.jsonl").read_text() == lines
    assert {k: v for k, v in told.items() if k != "report"} == json.loads(
        json.dumps(result.to_dict())
    )
    page = (result.folder / "report.html").read_text()
    for name, suite in SUITES.items():
        assert f">{name} <small>" in page
        assert suite.claim.split("'")[0] in page
    assert page.count("Verdict: cannot be told") == len(SUITES)
    assert ">transformers<" in page
    assert '"title":"continuation: cannot be told"' in page
    assert "seconds of one processor" in page
    assert "Shared mass by place" in page
    assert "`" not in " ".join(re.findall(r"<p[^>]*>[^<]*", page))


class _Killed(Exception):
    pass


def test_a_killed_lab_goes_on_and_ends_with_the_same_numbers(whole, tmp_path):
    expected = {judged.name: judged.to_dict() for judged in whole[0].suites}

    def die_at(arm):
        def hear(record):
            if record["kind"] == "unit" and record["arm"] == arm:
                raise _Killed

        return hear

    again = []
    wanted = {"seeds": 1, "short": True, "output": tmp_path / "lab"}
    with pytest.raises(_Killed):
        lab_suites(["same_data"], **wanted, observer=die_at("student, greedy"))
    torn = tmp_path / "lab" / "running-short" / "units.jsonl"
    assert torn.read_text().count("\n") == 2  # both distillations
    with torn.open("a") as stream:
        stream.write('{"unit": "1/half')
    found = lab_suites(["same_data"], **wanted, observer=again.append)
    assert [r["arm"] for r in again if r["kind"] == "unit"] == [
        "student, greedy",
        "same data, greedy",
    ]
    told = found.suites[0].to_dict()
    assert told | {"cpu_s": 0} == expected["same_data"] | {"cpu_s": 0}


def test_a_page_holds_every_suite_that_is_done_and_a_stranger_seed_or_size_none_of_them(tmp_path):
    wanted = {"seeds": 1, "short": True, "output": tmp_path}
    first = lab_suites(["compatible"], **wanted)
    assert first.others == []
    found = lab_suites(["continuation"], **wanted)
    assert [j.name for j in found.suites] == ["continuation"]
    assert [j.to_dict() for j in found.others] == [j.to_dict() for j in first.suites]
    written = json.loads((found.folder / "lab.json").read_text())
    assert [s["suite"] for s in written["suites"]] == ["compatible", "continuation"]
    assert written["cpu_s"] == round(found.suites[0].cpu_s, 1)  # of what was asked for
    other = lab_suites(["continuation"], first_seed=4, **wanted)
    assert [sorted(e.values) for e in other.suites[0].shown.values()] == [[4]] * 4
    assert other.others == []
    for changed in ({"steps": 3}, {"first_seed": -1}, {"steps": 0, "short": False}):
        with pytest.raises(UsageError):
            lab_suites(["compatible"], **(wanted | changed))


def test_places_are_means_over_tokens_and_a_place_nobody_reached_is_absent():
    def record(tokens, values):
        return {"edges": [0, 1, 2, 3, 4], "bins": {"tokens": tokens, "entropy/gap": values}}

    found = profile(
        [record([1, 3, 0, 2], [1.0, 2.0, None, 4.0]), record([3, 1, 0, 0], [3.0] * 4)], 4
    )
    assert found["entropy/gap"] == [2.5, 2.25, None, 4.0]
    assert found["reward/mean"] == [None] * 4
    late = profile([record([1, 1, 1, 1], [1.0, 2.0, 3.0, 4.0])], 2)  # after the longest answer
    assert late["entropy/gap"] == [1.0, None, 2.0, 3.5]


class _Shipped:
    task = TASKS["running"]

    def path(self, name, seed):
        return ZOO / name


def test_the_alignment_by_outcome_is_of_both_and_undefined_without_right_answers(tmp_path):
    place = Place(models=_Shipped(), seed=0, size=SHORT, folder=tmp_path)
    found = Outcomes(student="student", teacher="compatible").run(place)
    for name in OUTCOMES:
        assert found[name]["nodes"] > 0
        assert -1 <= found[name]["mean_cosine"] <= 1
        assert set(found[name]) == {"nodes", *MEASURES}
    able = Outcomes(student="compatible", teacher="student").run(place)
    assert [able[name] for name in OUTCOMES] == [{}, {}]
    assert "judged right" in able["undefined"]


def test_a_model_is_made_once_and_a_changed_recipe_is_another_model(tmp_path, monkeypatch):
    models = KeptModels(tmp_path, TASKS["mod"], short=True)
    made = []
    real = kept.train_model
    monkeypatch.setattr(kept, "train_model", lambda *a: made.append(a[3]) or real(*a))
    path = models.path("compatible", 2)
    assert models.path("compatible", 2) == path
    assert made == [2000, 2001]  # the student that it starts from, then itself
    weights = (path / "model.safetensors").read_bytes()
    twin = KeptModels(tmp_path / "twin", TASKS["mod"], short=True)
    (tmp_path / "twin").mkdir()
    assert (twin.path("compatible", 2) / "model.safetensors").read_bytes() == weights
    digest = models.digest("compatible", 2)
    assert models.digest("compatible", 3) != digest
    models.recipes["student"] = replace(models.recipes["student"], lr=1e-3)
    assert models.digest("compatible", 2) != digest
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_model_that_misses_its_target_leaves_its_seed_out(tmp_path, monkeypatch):
    tiny = Training(size=Size(width=8, layers=1, heads=1), steps=1, until_accuracy=1.0)
    recipes = kept.suite_recipes

    def hopeless(task, *, short=False):
        return {**recipes(task, short=short), "compatible": tiny}

    monkeypatch.setattr(kept, "suite_recipes", hopeless)
    found = lab_suites(["compatible"], seeds=1, short=True, output=tmp_path)
    monkeypatch.setattr(kept, "train_model", None)  # it is not tried again
    with pytest.raises(UsageError, match=r"compatible, seed 1: .*until_accuracy"):
        KeptModels(found.folder / "models", TASKS["running"], short=True).path("compatible", 1)
    assert "until_accuracy" in found.suites[0].failed[1]
    assert found.suites[0].word == "cannot be told"


def test_the_other_task_runs_too(tmp_path):
    found = lab_suites(["continuation"], task="mod", seeds=1, short=True, output=tmp_path)
    assert found.folder.name == "mod-short"
    assert set(found.suites[0].shown) == set(SUITES["continuation"].shown)
    with pytest.raises(UsageError, match="not made for task 'mod'"):
        lab_suites(["length"], task="mod", output=tmp_path)


def test_suites_and_tasks_that_do_not_exist_are_refused(tmp_path, capsys):
    assert main(["lab", "compatble", "-o", str(tmp_path)]) == 2
    assert "Did you mean 'compatible'" in capsys.readouterr().err
    for changed in ({"task": "mud"}, {"seeds": 0}):
        with pytest.raises(UsageError):
            lab_suites(["compatible"], output=tmp_path, **changed)
    assert list(tmp_path.iterdir()) == []
    assert tutelage.lab_suites is running.lab_suites


def test_the_list_names_every_suite_with_its_source(capsys):
    assert main(["lab", "list"]) == 0
    page = capsys.readouterr().out
    for name, suite in SUITES.items():
        assert name in page
        assert suite.mirrors in page
        assert "2604.13016, figure" in suite.mirrors or "2605.10889" in suite.mirrors


def test_another_size_in_the_same_folder_is_other_work(tmp_path, monkeypatch):
    def steps():
        found = lab_suites(["compatible"], seeds=1, short=True, output=tmp_path)
        return found.suites[0].curves["accuracy"]["compatible"]["steps"]

    assert steps() == [0, 1, 2]
    monkeypatch.setattr(running, "SHORT", replace(running.SHORT, steps=3))
    assert steps() == [0, 1, 2, 3]
