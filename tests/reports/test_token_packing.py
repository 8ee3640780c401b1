"""What the per-token view is given: bounded in error, in size, and in what it needs to be there."""

import json
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from token_runs import write_run

from tutelage.reports.packing import (
    FLOOR,
    LETTERS,
    LOGPROBS,
    Lists,
    Scale,
    fine_codes,
    pack,
)
from tutelage.reports.records import Notes
from tutelage.reports.sheets import (
    MOST_ROLLOUTS,
    MOST_TOKENS,
    WORST,
    Glossary,
    read_sheets,
    shown_token,
)
from tutelage.reports.tokens import packed, token_section


def test_a_log_probability_in_one_byte_is_true_to_the_documented_bound():
    values = -np.linspace(0, FLOOR, 200_001, dtype=np.float32)
    found = LOGPROBS.decode(LOGPROBS.encode(values))
    step = FLOOR / (2 * 254) ** 2  # a quarter of the first step, where the square root is 0
    bound = np.sqrt(-values * FLOOR) / 254 + step
    assert (np.abs(found - values) <= bound + 1e-5).all()
    assert np.abs(np.exp(found) - np.exp(values)).max() < 0.0085  # of probability, anywhere
    assert LOGPROBS.decode(LOGPROBS.encode(np.float32([0.0])))[0] == 0
    assert LOGPROBS.decode(LOGPROBS.encode(np.float32([-99.0])))[0] == -FLOOR
    assert np.isnan(LOGPROBS.decode(LOGPROBS.encode(np.float32([np.nan])))[0])


@given(
    st.sampled_from([-1, 0, 1]),
    st.floats(1e-3, 1e3),
    st.floats(-1, 1),
    st.lists(st.floats(0, 1), min_size=1, max_size=50),
)
def test_a_signal_in_one_byte_is_true_to_the_documented_bound(direction, span, origin, shares):
    signs = np.where(np.arange(len(shares)) % 2, 1, -1) if direction == 0 else direction
    away = np.array(shares) * span * signs
    scale = Scale(origin, span, direction)
    found = scale.decode(scale.encode((origin + away).astype(np.float32))) - origin
    levels = 254 if direction else 127
    bound = np.sqrt(np.abs(away) * span) / levels + span / (2 * levels) ** 2
    assert (np.abs(found - away) <= bound + 1e-6 * (abs(origin) + span)).all()


def test_a_log_probability_in_two_bytes_is_true_to_a_fiftieth_of_a_per_cent():
    values = -np.linspace(0, FLOOR, 10_001, dtype=np.float32)[:, None]
    low, high = (plane.astype(int) for plane in fine_codes(values))
    found = -FLOOR * (low + 256 * high) / 65_534
    assert np.abs(found - values[:, 0]).max() < 2e-4
    assert [plane.tolist() for plane in fine_codes(np.float32([[np.nan]]))] == [[255], [255]]


@given(st.binary(max_size=400))
def test_text_holds_the_bytes_and_nothing_that_could_end_a_script(content):
    text, size = pack([np.frombuffer(content, np.uint8)])
    assert set(text) <= set(LETTERS)
    assert not set(text) & set('<"\\')
    bits = "".join(
        f"{len(LETTERS) * LETTERS.index(a) + LETTERS.index(b):013b}"
        for a, b in zip(text[::2], text[1::2], strict=True)
    )
    whole = bytes(int(bits[i : i + 8], 2) for i in range(0, 8 * size, 8))
    assert zlib.decompress(whole) == content


def test_tokens_below_a_probability_go_but_never_the_first_of_a_list():
    ids = np.uint32([[5, 6, 7]])
    logprobs = np.log(np.float32([[0.005, 0.004, 0.5]]))
    cut = Lists(ids, logprobs, ids, logprobs).above(np.log(0.01))
    assert cut.student.tolist() == [[5, 0, 7]]
    assert np.isnan(cut.teacher_logprobs[0]).tolist() == [False, True, False]


def test_a_token_that_could_not_be_seen_is_spelled_out():
    assert shown_token("\u200d") == "⟨U+200D⟩"
    assert shown_token("\u202eevil") == "⟨U+202E⟩evil"
    assert shown_token("\u0301") == "◌\u0301"
    assert shown_token(" the") == " the"
    assert shown_token("\n") == "\n"
    assert len(shown_token("x" * 10**6)) < 300


def sheets(*runs):
    glossary, notes = Glossary(), Notes()
    views, found = read_sheets([(run.name, run) for run in runs], glossary, notes)
    return views, found, glossary, notes


def test_what_does_not_fit_is_left_out_in_order_and_told(tmp_path):
    views, found, glossary, notes = sheets(write_run(tmp_path, rollouts=6, tokens=300))
    full = len(json.dumps(packed(views, found, glossary, Notes(), 10**9)))
    sizes = []
    for share in (1.05, 0.93, 0.85, 0.75, 0.6, 0.4):
        told = Notes()
        data = packed(views, found, glossary, told, int(share * full))
        sizes.append((data["listed"], -data["least"], len(data["rollouts"])))
        assert len(json.dumps(data)) <= share * full
        assert bool(told.texts) == (share < 1)
    assert sizes[0] == (5, 0, 12)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)
    # Every checkpoint gives up as many.
    assert len({r["view"] for r in data["rollouts"]}) == 2
    assert notes.texts == []


def test_checkpoints_share_the_room_and_show_the_same_questions(tmp_path):
    run = write_run(tmp_path, steps=range(0, 300, 10), rollouts=30, tokens=4, distinct=2)
    views, found, _, notes = sheets(run)
    steps = [view.step for view in views]
    assert steps[0] == 0
    assert steps[-1] == 290
    assert len(steps) == 12
    assert len(found) <= MOST_ROLLOUTS
    shown = [[s.question for s in found if s.view == v] for v in range(len(views))]
    assert all(questions == shown[0] for questions in shown)
    assert any("left out" in text for text in notes.texts)
    assert sum(len(s.tokens) for s in found) <= MOST_TOKENS


def test_runs_without_lists_show_what_they_have(tmp_path):
    run = write_run(tmp_path, steps=[3], rollouts=2, tokens=20)
    file = run / "rollouts" / "step-3.jsonl"
    old = [json.loads(line) for line in file.read_text().splitlines()]
    for record in old:
        for key in ("likely", "vocabulary", "bytes", "special"):
            del record[key]
        for key in ("student_logprob", "weight"):
            del record["scores"][key]
    file.write_text("".join(json.dumps(record) + "\n" for record in old))
    section = token_section([("run", run)])
    rollout = section.data["rollouts"][0]
    assert rollout["lists"] == [0, 0, 0, 0]
    titles = {section.data["signals"][s]["title"] for s in rollout["signals"]}
    assert "Reverse KL" in titles
    assert "Token weight" not in titles


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r.pop("tokens"),
        lambda r: r["completion_ids"].pop(),
        lambda r: r["completion_ids"].__setitem__(0, "x"),
        lambda r: r["likely"]["student"]["ids"].pop(),
        lambda r: r["likely"].pop("teacher"),
        lambda r: r["likely"]["teacher"]["logprobs"].__setitem__(0, [None, {}]),
        lambda r: r.__setitem__("vocabulary", 3),
        lambda r: r.__setitem__("bytes", {"1": "zz"}),
        lambda r: r["likely"]["student"]["ids"][0].__setitem__(0, 10**30),
    ],
)
def test_a_damaged_rollout_is_left_out_and_counted(tmp_path, damage):
    run = write_run(tmp_path, steps=[0], rollouts=3, tokens=8)
    file = run / "rollouts" / "step-0.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    damage(records[1])
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    _, found, _, notes = sheets(run)
    kept = [sheet.question for sheet in found]
    assert kept in (["q0", "q2"], ["q0", "q1", "q2"])
    assert (len(kept) == 2) == any("damaged" in text for text in notes.texts)
    token_section([("run", run)])


def test_a_column_that_is_no_column_is_left_out(tmp_path):
    run = write_run(tmp_path, steps=[0], rollouts=1, tokens=8)
    file = run / "rollouts" / "step-0.jsonl"
    record = json.loads(file.read_text())
    record["scores"]["kl/reverse"] = [None] * 8
    record["scores"]["entropy/student"] = ["a"] * 8
    record["scores"]["entropy/teacher"] = [0.5] * 7
    record["scores"]["reward/mean"][3] = None
    file.write_text(json.dumps(record) + "\n")
    (sheet,) = sheets(run)[1]
    assert not {"kl/reverse", "entropy/student", "entropy/teacher"} & sheet.signals.keys()
    assert np.isnan(sheet.signals["log_ratio"]).tolist() == [i == 3 for i in range(8)]


def test_a_directory_without_rollouts_has_no_section(tmp_path):
    assert token_section([("run", write_run(tmp_path, steps=[]))]) is None


def test_an_alignment_is_shown_under_each_of_its_teachers(tmp_path):
    node = {
        "depth": 1,
        "entropy": 0.6,
        "children": [" a", " b", "(all others)"],
        "ids": [4, 5, -1],
        "student": [0.7, 0.2, 0.1],
        "success": [0.25, 1.0, None],
        "success_error": [0.2, 0.1, 0.3],
        "rollouts": [4, 4, 0],
        "teachers": {
            name: {
                "probabilities": probabilities,
                "objective": {"dot": dot, "advantage": dot / 2, "cosine": None, "move": 1.0},
            }
            for name, probabilities, dot in (
                ("teacher", [0.1, 0.8, 0.1], 0.3),
                ("other", [0.9, 0.1, 0.0], -0.2),
            )
        },
    }
    record = {
        "question": "q1",
        "index": 0,
        "right": True,
        "weight": 1.0,
        "prompt": "Why?",
        "tokens": ["I", " b", "."],
        "moves": {"teacher": [0.1, 0.5, 0.2], "other": [0.1, 0.4, 0.3]},
        "nodes": [node],
    }
    (tmp_path / "tokens.jsonl").write_text(json.dumps(record) + "\n")
    views, (first, second), glossary, _ = sheets(tmp_path)
    assert [view.teacher for view in views] == ["teacher", "other"]
    assert first.signals["alignment/dot"][1] == pytest.approx(0.3)
    assert second.signals["alignment/dot"][1] == pytest.approx(-0.2)
    assert np.isnan(first.signals["alignment/dot"][[0, 2]]).all()
    assert [glossary.texts[i] for i in first.whole.teacher[0]] == [" b", " a", "(all others)"]
    assert first.success[0][:2].tolist() == [0.25, 1.0]
    assert np.exp(second.whole.teacher_logprobs[0]).tolist() == pytest.approx(
        [0.9, 0.1, 0], abs=1e-6
    )
    section = token_section([("align", tmp_path)])
    assert section.data["rollouts"][1]["success"]


def test_the_worst_tokens_keep_everything_that_was_recorded(tmp_path):
    run = write_run(tmp_path, steps=[0], rollouts=1, tokens=200)
    record = json.loads((run / "rollouts" / "step-0.jsonl").read_text())
    _, (sheet,), glossary, _ = sheets(run)
    kl = np.array(record["scores"]["kl/reverse"])
    assert set(sheet.places) == set(np.argsort(-kl, kind="stable")[:WORST])
    ids = [[glossary.ids[i] for i in row] for row in sheet.whole.student]
    assert ids == [record["likely"]["student"]["ids"][place] for place in sheet.places]
