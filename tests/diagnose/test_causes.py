"""Each rule fires on its signal, and not beside it."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from planted import (
    DEEP,
    FLAT,
    PLANTED,
    ROUNDED,
    SYMPTOMS,
    config,
    evaluations,
    healthy,
    steps,
    symptom,
)

from tutelage.config import Warned
from tutelage.ops.intervals import proportion_interval
from tutelage.signals.history import History
from tutelage.signals.mass import unnamed_states
from tutelage.signals.ranking import RULES, rank, unread, warnings


def found(history):
    return {cause.name: cause.confidence for cause in rank(history)}


def first(history):
    return rank(history)[0].name


def test_in_a_healthy_run_nothing_is_found():
    assert found(healthy()) == {}


def test_a_run_that_recorded_nothing_is_accused_of_nothing_and_says_what_was_not_judged():
    assert found(History()) == {}
    assert "learning_rate" in unread(History())
    assert unread(healthy()) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_cause_is_ranked_first_and_sure(name):
    causes = rank(PLANTED[name])
    assert (causes[0].name, causes[0].confidence) == (name, "high")
    assert causes[0].evidence
    assert all(evidence for evidence in causes[0].evidence)


@pytest.mark.parametrize("name", PLANTED)
def test_no_other_cause_is_as_sure(name):
    assert [n for n, confidence in found(PLANTED[name]).items() if confidence == "high"] == [name]


@pytest.mark.parametrize("name", SYMPTOMS)
def test_a_symptom_is_found_alone_and_stands_behind_a_sure_cause(name):
    alone = symptom(name)
    records = alone.steps
    assert list(found(alone)) == [name]
    with_cause = healthy(
        steps=[record | {"update/kl": 3.0} for record in records],
        evaluations=evaluations(after=0.1),
    )
    causes = rank(with_cause)
    assert [cause.name for cause in causes] == ["learning_rate", name]
    assert causes[1].confidence == "medium"


def test_small_steps_are_accused_by_how_much_of_the_way_to_the_teacher_they_fall_short():
    """20 steps of d nats reach 400 d; the teacher is .7 away."""
    for size, sure in ((1.7e-4, "high"), (1.8e-4, "low"), (1.7e-3, "low"), (1.8e-3, None)):
        run = healthy(steps=steps(**{"update/kl": (size, size)}), evaluations=evaluations(**FLAT))
        assert found(run).get("small_steps") == sure
        assert "small_steps" not in found(replace(run, goes_on=True))


def test_deep_disagreement_is_no_more_than_a_hint():
    assert found(DEEP) == {"unreliable_depth": "low"}


def test_an_able_teacher_far_away_that_made_the_student_worse_is_suspect():
    far = {"kl/reverse": 3.0}
    assert found(healthy(evaluations=evaluations(after=0.1, **far))) == {
        "thinking_pattern": "medium"
    }
    assert found(healthy(evaluations=evaluations(after=0.34, **far))) == {"small_steps": "low"}


def test_sides_that_began_apart_and_came_together_are_no_more_than_a_setting_worth_a_look():
    apart = evaluations(**{"overlap/mass_student": 0.5})
    for at_end, sure in ((0.7, "medium"), (0.95, "low")):
        together = steps(**{"overlap/mass_student": (0.5, at_end)})
        assert found(healthy(steps=together, evaluations=apart)) == {"thinking_pattern": sure}


def test_coarser_rounding_that_did_no_harm_is_a_setting_worth_a_look():
    assert found(ROUNDED) == {"precision": "low"}


def test_rows_that_only_pad_are_worth_a_look_and_no_more():
    assert found(healthy(noted={"vocabularies_differ": "28 rows and 32"})) == {"vocabulary": "low"}


def test_a_student_that_never_stops_where_the_teacher_does_is_not_short_of_room():
    cut = {"rollout/truncated": 1.0, "stop/reward": 0.0}
    noted = {"stop_ids_differ": "the student stops at [5], the teacher at [2]"}
    history = healthy(noted=noted, evaluations=evaluations(**FLAT, **cut))
    assert found(history) == {"stop_ids": "high", "response_limit": "medium"}


def test_a_student_that_reads_a_foreign_template_is_told():
    history = healthy(
        config=config(student={"chat_template": "other.jinja"}),
        evaluations=evaluations(**FLAT, teacher=0.2, **{"sequence_reward/auroc": 0.85}),
    )
    assert first(history) == "template"
    assert rank(history)[0].change == {"student.chat_template": "own"}


def test_a_teacher_that_changes_in_the_middle_of_a_run_is_noticed():
    records = steps()
    for record in records[12:]:
        record["kl/reverse"] += 4.0
    causes = rank(healthy(steps=records))
    assert [(c.name, c.confidence) for c in causes] == [("broken_teacher", "medium")]
    assert any("step 13" in line for line in causes[0].evidence)
    for record in records:
        record["update/kl"] = 0.4  # the student itself moves that fast
    assert "broken_teacher" not in found(healthy(steps=records))


def test_rollouts_a_step_old_are_worth_a_look():
    records = steps(**{"rollout/age": (1.0, 1.0), "rollout/drift_k3": (0.1, 0.1)})
    assert found(healthy(steps=records)) == {"stale_rollouts": "low"}


def test_a_teacher_of_another_prompt_that_it_reads_well_is_no_cause():
    own = config(teacher={"user_prompt": "{question} (answer: {answer})"})
    assert found(healthy(config=own)) == {}


def test_a_teacher_that_gives_every_token_one_score_does_not_read():
    constant = [{"completion_ids": [i % 4 for i in range(80)], "scores": {}}]
    constant[0]["scores"] = {
        "teacher_logprob": [-3.0] * 80,
        "student_logprob": [-0.1 * (i % 7) for i in range(80)],
    }
    assert found(healthy(rollouts=constant))["broken_teacher"] == "high"
    sure = constant[0]["scores"] | {"teacher_logprob": [-0.001] * 80}
    assert found(healthy(last_rollouts=[constant[0] | {"scores": sure}])) == {}
    reads = constant[0]["scores"] | {"teacher_logprob": [-0.3 * (i % 5) for i in range(80)]}
    assert found(healthy(rollouts=[constant[0] | {"scores": reads}])) == {}


def test_a_teacher_sure_of_wrong_answers_is_broken_rather_than_weak():
    history = healthy(
        evaluations=evaluations(
            after=0.1, teacher=0.35, **{"sequence_reward/auroc": 0.6, "entropy/teacher": 0.005}
        )
    )
    assert next(iter(found(history).items())) == ("broken_teacher", "medium")
    assert found(history)["no_new_knowledge"] == "medium"


def test_a_teacher_weaker_than_the_student_gives_nothing_whatever_it_tells_apart():
    history = healthy(
        evaluations=evaluations(
            0.98, 0.35, teacher=0.33, **{"sequence_reward/auroc": 0.9, "entropy/teacher": 0.2}
        )
    )
    assert found(history) == {"no_new_knowledge": "high"}


def test_an_able_teacher_whose_answers_are_cut_is_not_called_weak():
    history = healthy(
        evaluations=evaluations(
            teacher=0.2, **{"teacher/truncated": 0.8, "rollout/truncated": 0.75}, after=0.15
        )
    )
    assert first(history) == "response_limit"
    assert "no_new_knowledge" not in found(history)


def test_a_reward_with_a_bound_has_no_tail():
    bounded = config(objective={"type": "sampled", "bound": 1.0})
    assert found(healthy(config=bounded, evaluations=evaluations(**FLAT))) == {}


def test_a_bucket_holds_what_a_teacher_without_a_favourite_leaves_out():
    few = config(objective={"type": "top_k", "k": 2})
    records = steps(**{"support/teacher_mass": (0.85, 0.85), "entropy/teacher": (0.4, 0.4)})
    told = evaluations(**FLAT, **{"entropy/student": 0.1})
    assert "narrow_support" not in found(healthy(config=few, steps=records, evaluations=told))


@pytest.mark.parametrize(
    ("after", "shared", "held", "confidence"),
    [
        (0.34, 0.93, (0.95, 0.95), "high"),
        (0.1, 0.93, (0.95, 0.95), None),  # a student that falls has been pushed
        (0.9, 0.93, (0.95, 0.95), None),
        (0.34, 0.5, (0.95, 0.95), None),  # nor would a wider one show it the teacher's way
        (0.34, 0.93, (0.999, 0.5), None),  # a student that left its path since
    ],
)
def test_a_support_is_too_narrow_where_a_student_stood_still(after, shared, held, confidence):
    records = steps(**{"support/teacher_mass": held})
    told = evaluations(after=after, **{"overlap/mass_student": shared})
    names = found(healthy(steps=records, evaluations=told))
    assert names.get("narrow_support") == confidence


def test_the_share_of_states_that_a_support_leaves_unnamed_is_never_overstated():
    rng, tight = np.random.default_rng(0), 0
    for _ in range(300):
        sharpness = rng.choice([0.05, 0.2, 1.0])
        q = rng.dirichlet(np.full(rng.integers(3, 30), sharpness), size=rng.integers(1, 40))
        held = q[:, : rng.integers(1, q.shape[1])].sum(-1)
        entropy = -(q * np.log(np.maximum(q, 1e-300))).sum(-1)
        record = {"support/teacher_mass": held.mean(), "entropy/teacher": entropy.mean()}
        share = unnamed_states(History(steps=[record]))
        assert share <= (held < 0.5).mean() + 1e-12
        tight += share > 0.1
    assert tight > 30


def test_stale_rollouts_are_seen_also_where_the_student_no_longer_moves():
    records = steps(**{"rollout/age": (8.0, 8.0), "update/kl": (5.0, 0.0)})
    for record in records:
        record["rollout/drift_k3"] = 2.0 if record["step"] < 12 else 0.0
    history = healthy(steps=records, evaluations=evaluations(after=0.0))
    assert found(history) == {"stale_rollouts": "high", "learning_rate": "high"}


@pytest.mark.parametrize(
    ("rollout", "change"),
    [
        ({"delay_steps": 8}, {"rollout.delay_steps": 0}),
        ({"steps_per_generation": 8}, {"rollout.steps_per_generation": 1}),
        (
            {"delay_steps": 2, "steps_per_generation": 8},
            {"rollout.steps_per_generation": 1, "rollout.delay_steps": 0},
        ),
    ],
    ids=str,
)
def test_what_made_rollouts_stale_is_what_is_changed(rollout, change):
    records = steps(**{"rollout/age": (8.0, 8.0), "rollout/drift_k3": (0.1, 0.1)})
    (cause,) = rank(healthy(config=config(rollout=rollout), steps=records))
    assert (cause.name, cause.change) == ("stale_rollouts", change)


def test_one_large_step_is_no_learning_rate():
    records = steps()
    records[1]["update/kl"] = 2.0
    assert found(healthy(steps=records)) == {}


def test_two_causes_are_both_found_what_is_free_to_know_first():
    both = healthy(
        config=config(objective={"type": "sampled"}),
        steps=steps(**{"update/kl": (5.0, 1.0)}),
        evaluations=evaluations(after=0.0, **{"rollout/truncated": 0.6, "teacher/truncated": 0.6}),
    )
    assert [c.name for c in rank(both)] == ["response_limit", "reward_tail", "learning_rate"]


def test_a_loss_of_nats_at_the_end_alone_is_a_disagreement_on_ending_without_any_note():
    history = healthy(evaluations=evaluations(**FLAT, **{"stop/reward": -9.0, "reward/mean": -0.7}))
    assert found(history) == {"stop_ids": "medium"}


@pytest.mark.parametrize(
    ("after", "outcome"), [(0.42, "improved"), (0.30, "flat"), (0.22, "flat"), (0.05, "worse")]
)
def test_the_outcome_is_judged_by_the_interval_of_the_difference(after, outcome):
    """.42 beside .22 of 64: their intervals overlap, and their difference is above 0."""

    def judged(right):
        low, high = proportion_interval([1.0] * round(64 * right) + [0.0] * round(64 * (1 - right)))
        return {"accuracy": right, "accuracy/low": low, "accuracy/high": high}

    told = [{"kind": "eval", "step": i, **judged(x)} for i, x in ((0, 0.22), (20, after))]
    assert History(config=config(), steps=steps(), evaluations=told).outcome == outcome


def test_the_outcome_without_a_verifier_is_that_of_the_divergence():
    def run(end):
        return History(steps=steps(**{"kl/reverse": (0.7, end)}))

    assert [run(end).outcome for end in (0.1, 0.7, 3.0)] == ["improved", "flat", "worse"]


def test_a_student_that_is_no_better_yet_is_no_warning_and_one_that_is_worse_is():
    sampled = config(objective={"type": "sampled"})
    for after, warned in ((0.34, []), (0.1, ["reward_tail"])):
        going = healthy(config=sampled, evaluations=evaluations(after=after), goes_on=True)
        assert [signal.name for signal in warnings(going)] == warned


def test_every_name_that_a_guard_may_stop_at_is_that_of_a_rule():
    of_guards = {"truncation", "length_inflation", "length_collapse", "engine_drift", "non_finite"}
    never = {"precision", "vocabulary", "unreliable_depth", "entropy_collapse"}
    never |= {"narrow_support", "small_steps"}  # sure only of a run that is over
    sure = {rule.__name__ for rule in RULES} - never
    assert set(get_args(Warned)) == sure | of_guards


def test_every_rule_has_a_claim_here():
    claimed = {*PLANTED, *SYMPTOMS, "unreliable_depth", "precision", "vocabulary"}
    assert {rule.__name__ for rule in RULES} == claimed
