"""The verdict as a function of the evidence."""

from dataclasses import replace

import pytest

from tutelage.diagnose.verdict import Evidence, Measured, judge_pair
from tutelage.signals import Signal

HELPS, HARMS, NOTHING = Measured(0.02, 0.01, 0.03), Measured(-0.06, -0.1, -0.02), Measured(0, -1, 1)
ABLE, EQUAL, WORSE = Measured(0.6, 0.5, 0.7), Measured(0.0, -0.04, 0.04), Measured(-0.6, -0.7, -0.5)
GOOD = Evidence(
    student=Measured(0.3, 0.2, 0.4),
    gap=ABLE,
    advantage=HELPS,
    rescue=Measured(0.8, 0.6, 0.9),
    shared_mass=0.93,
    truncated=0.0,
    stop_mass_student=0.99,
    stop_mass_teacher=0.98,
)


FEW = {
    "shared_mass": 0.6,
    "advantage": HARMS,
    "familiar": Measured(0.06, 0.03, 0.1),
    "familiar_gain": Measured(0.8, 0.4, 0.9),
}


NEAR = {"within_reach": Measured(0.8, 0.7, 0.9)}


@pytest.mark.parametrize(
    ("word", "changes"),
    [
        ("go", {}),
        # Help that is found decides, whatever the resemblance.
        ("go", {"shared_mass": 0.4}),
        # Resemblance decides nothing by itself.
        ("different-teacher", {"gap": EQUAL, "advantage": NOTHING, "shared_mass": 0.99}),
        ("different-teacher", {"gap": EQUAL}),
        ("different-teacher", {"gap": WORSE, "advantage": HARMS}),
        ("cold-start", {"advantage": HARMS}),
        ("cold-start", {"advantage": HARMS, "shared_mass": 0.97}),
        ("cold-start", {"advantage": NOTHING, "shared_mass": 0.6}),
        ("unknown", {"advantage": NOTHING}),
        ("unknown", {"advantage": None}),
        ("unknown", {"advantage": None, "has_outcomes": False}),
        ("unknown", {"advantage": None, "gap": None}),
        ("cold-start", {"advantage": None, "gap": None, "shared_mass": 0.5}),
        ("unknown", {"gap": Measured(0.1, -0.1, 0.3), "rescue": None}),
        ("change-prompts", {"truncated": 0.9}),
        ("change-prompts", {"student": Measured(0.99, 0.97, 1.0)}),
        ("change-prompts", {"stop_mass_teacher": 1e-6}),
        # Nobody right: the questions or the verifier, not the pair.
        ("change-prompts", {"student": Measured(0, 0, 0.1), "gap": Measured(0, -0.1, 0.1)}),
        ("unknown", {"student": Measured(0, 0, 0.1), "advantage": None, "has_outcomes": False}),
        # The student itself under another name.
        ("different-teacher", {"kl": 1e-7, "gap": EQUAL, "advantage": Measured(0, 0, 0)}),
        # Most answers are foreign; those that are not, and where the teacher helps, decide.
        ("go", FEW),
        ("go", {**FEW, "advantage": NOTHING}),
        ("go", {**FEW, "advantage": None}),
        ("cold-start", {**FEW, "familiar_gain": None}),
        ("cold-start", {**FEW, "familiar_gain": NOTHING}),
        ("unknown", {**FEW, "familiar": Measured(0.01, 0.002, 0.03)}),
        # Nobody saw the student in the teacher's pattern, but it could write it.
        ("unknown", {**FEW, "familiar_gain": None, "within_reach": Measured(0.8, 0.7, 0.9)}),
        ("cold-start", {**FEW, "familiar_gain": None, "within_reach": Measured(0, 0, 0.1)}),
        # No step of the teacher's answers is impossible to it.
        ("go", {**FEW, "familiar": None, "passable": Measured(0.9, 0.8, 0.95)}),
        ("unknown", {**FEW, "familiar_gain": None, **NEAR, "passable": Measured(0.55, 0.4, 0.7)}),
        ("cold-start", {**FEW, "shared_mass": 0.93, "passable": Measured(0.9, 0.8, 0.95)}),
        # Where most are not foreign the average advantage is about what stays.
        ("cold-start", {**FEW, "shared_mass": 0.93}),
        ("different-teacher", {**FEW, "gap": EQUAL}),
        # A solved question set is no excuse for a teacher that knows less.
        ("different-teacher", {"student": Measured(0.99, 0.97, 1.0), "gap": WORSE}),
        ("different-teacher", {"gap": WORSE}),
    ],
)
def test_each_kind_of_evidence_has_its_verdict(word, changes):
    assert judge_pair(replace(GOOD, **changes)).word == word


def test_nothing_measured_is_unknown_and_never_go():
    assert judge_pair(Evidence()).word == "unknown"


def test_no_single_piece_of_evidence_is_enough_to_go_but_the_advantage():
    without = replace(GOOD, advantage=None)
    assert judge_pair(without).word == "unknown"
    assert judge_pair(Evidence(advantage=HELPS)).word == "go"


def test_a_signal_that_stops_decides_alone():
    signal = Signal(name="tokens_differ", severity="stop", evidence="2 ids differ", advice="mend")
    verdict = judge_pair(GOOD, [signal])
    assert verdict.word == "different-teacher"
    assert verdict.reasons[0].name == "tokens_differ"


def test_other_stop_ids_are_doubted_before_a_teacher_that_seems_no_better():
    signal = Signal(name="stop_ids_differ", severity="warning", evidence="2 and 7", advice="mend")
    assert judge_pair(replace(GOOD, gap=WORSE), [signal]).word == "change-prompts"
    assert judge_pair(GOOD, [signal]).word == "go"


def test_a_context_that_is_too_short_is_a_setting_and_no_fault_of_the_teacher():
    signal = Signal(name="context_too_short", severity="stop", evidence="30", advice="lower")
    assert judge_pair(GOOD, [signal]).word == "change-prompts"


def test_warnings_are_told_beside_the_reason_that_decides():
    signal = Signal(name="stop_ids_differ", severity="warning", evidence="2 and 7", advice="mend")
    verdict = judge_pair(GOOD, [signal])
    assert verdict.word == "go"
    names = [r.name for r in verdict.reasons]
    assert names[0] == "advantage"
    assert "stop_ids_differ" in names
    assert len(names) == len(set(names))
