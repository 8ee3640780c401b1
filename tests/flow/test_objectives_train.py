"""Every setting of the objective runs in the loop, does something, and resumes."""

import json
from dataclasses import replace

import pytest
import torch

from helpers import read_jsonl, sums, write_jsonl
from tutelage.beginning import start_run
from tutelage.cli import main
from tutelage.config import parse_config, preset_names
from tutelage.diagnose.explaining import explain
from tutelage.errors import UsageError
from tutelage.evaluation import teacher_pass_rates
from tutelage.training import train


@pytest.fixture
def settings(gpt2_pair, tmp_path):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(24))

    def make(name="run", objective=None, **sections):
        tree = {
            "student": {"path": str(gpt2_pair[0])},
            "teacher": {"path": str(gpt2_pair[1])},
            "data": {
                "prompts": str(prompts),
                "held_out": 4,
                # Right now and then: the random models print a digit in some completions.
                "verifier": {"type": "pattern", "pattern": "([0-9])"},
            },
            "rollout": {"prompts_per_step": 4, "group_size": 4, "max_new_tokens": 8},
            "optimizer": {"lr": 1e-3, "micro_batch_size": 7},
            "evaluation": {"every": 0},
            "objective": objective or {},
            "run": {"dir": str(tmp_path / name), "steps": 2, "save_every": 1},
        }
        for section, values in sections.items():
            tree[section] = {**tree[section], **values}
        return parse_config(tree)

    return make


def step_gradient(config, rewards=None):
    """The parameters after one step, flat."""
    from dataclasses import replace

    trainer = start_run(config, lambda record: None)
    rollouts = trainer.next_rollouts()
    if rewards is not None:  # so that verdicts differ, whatever the random models say
        rollouts = [replace(r, reward=rewards[i % len(rewards)]) for i, r in enumerate(rollouts)]
    trainer.update(rollouts)
    return torch.cat([p.detach().flatten() for p in trainer.models.student.model.parameters()])


VARIANTS = {
    "full": {"type": "full"},
    "sampled": {"type": "sampled"},
    "bound": {"type": "sampled", "bound": 0.3},
    "kl baseline": {"type": "sampled", "baseline": "kl"},
    "kl baseline k": {"type": "sampled", "baseline": {"type": "kl", "k": 4}},
    "batch mean": {"type": "sampled", "baseline": "batch_mean"},
    "teacher support": {"support": "teacher"},
    "union": {"support": "union"},
    "intersection": {"support": "intersection"},
    "symmetric difference": {"support": "symmetric_difference"},
    "k": {"k": 3},
    "renormalise": {"tail": "renormalise"},
    "drop": {"tail": "drop"},
    "reference code": {"tail": "reference_code"},
    "reference code weight": {"tail": {"type": "reference_code", "weight": "teacher"}},
    "forward": {"divergence": "forward_kl"},
    "jsd": {"divergence": "jsd"},
    "jsd beta": {"divergence": {"type": "jsd", "beta": 0.1}},
    "skew": {"divergence": "skew"},
    "skew forward": {"divergence": {"type": "skew", "direction": "forward"}},
    "power": {"divergence": "power"},
    "power alpha": {"divergence": {"type": "power", "alpha": 3}},
    "mix": {"divergence": "mix"},
    "mix ramp": {"divergence": {"type": "mix", "ramp": {"low": 4.0, "high": 6.0}}},
    "position down": {"weight": "position"},
    "position up": {"weight": {"type": "position", "direction": "up"}},
    "entropy low": {"weight": "teacher_entropy"},
    "entropy high": {"weight": {"type": "teacher_entropy", "favour": "high"}},
    "tip": {"weight": "tip"},
    "teachability": {"weight": "teachability"},
    "correctness": {"weight": {"type": "correctness", "right": 0.1}},
    "correctness raw": {"weight": {"type": "correctness", "right": 0.1, "normalise": False}},
    "pass rate": {"prompt_weight": "pass_rate"},
    "extrapolated": {"target": "extrapolated"},
    "extrapolated more": {"target": {"type": "extrapolated", "strength": 3}},
    "arithmetic": {"target": "arithmetic"},
    "reward": {"reward": {}},
    "reward more": {"reward": {"coefficient": 5}},
    "reward annealed": {"reward": {"schedule": {"type": "anneal", "end": 1}}, "type": "full"},
    "return to go": {"return_to_go": 0.9},
}
# Settings that change where completions are right or prompts are passed: given by hand.
REWARDS = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]


def test_each_setting_changes_the_step_and_no_two_agree(settings):
    """A setting that did nothing would leave the default's weights, or another's."""
    found = {"default": step_gradient(settings("default"), REWARDS)}
    for i, (name, objective) in enumerate(VARIANTS.items()):
        found[name] = step_gradient(settings(f"v{i}", objective), REWARDS)
        assert found[name].isfinite().all(), name
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.equal(found[one], found[other]), (one, other)


def test_the_annealed_teacher_is_silent_at_the_end(settings):
    schedule = {"type": "anneal", "start": 1, "end": 3}
    trainer = start_run(settings(objective={"reward": {"schedule": schedule}}), lambda r: None)
    shares = []
    for trainer.step in range(5):
        shares.append(trainer.teacher_share())
    assert shares == [1, 1, 0.5, 0, 0]


def test_a_brake_holds_the_student_near_its_start(settings):
    start = step_gradient(settings("start", optimizer={"lr": 1e-12}))

    def moved(name, objective):
        config = settings(name, objective, run={"steps": 12}, optimizer={"lr": 3e-3})
        trainer = start_run(config, lambda record: None)
        for _ in range(12):
            trainer.update(trainer.next_rollouts())
        student = trainer.models.student.model
        return (torch.cat([p.detach().flatten() for p in student.parameters()]) - start).norm()

    assert moved("held", {"brake": {"coefficient": 50.0}}) < 0.8 * moved("free", {})


def test_the_same_teacher_before_and_after_shifts_the_student_nowhere(settings, gpt2_pair):
    """q / q0 = 1, so the target is the student itself and the first gradient is zero."""
    target = {"type": "shift", "teacher_base": {"path": str(gpt2_pair[1])}}
    trainer = start_run(settings(objective={"type": "full", "target": target}), lambda r: None)
    trainer.update(trainer.next_rollouts())
    assert trainer.steps[0]["grad_norm"] < 1e-5
    assert trainer.steps[0]["loss"] < 1e-6


def test_references_survive_a_resume_unchanged(settings):
    """`initial` is the student before the run, not the one that was resumed."""
    objective = {"target": "extrapolated", "brake": {"coefficient": 0.1}}
    straight = train(settings("straight", objective, run={"steps": 3}))
    train(settings("resumed", objective, run={"steps": 2}))
    resumed = train(settings("resumed", objective, run={"steps": 3}), resume=True)

    def losses(result):
        return [r["loss"] for r in read_jsonl(result.run / "metrics.jsonl") if "loss" in r]

    assert losses(resumed) == losses(straight)


def test_the_teacher_gate_weighs_prompts_by_the_teachers_own_success(settings):
    config = settings(objective={"prompt_weight": {"type": "teacher_gate", "samples": 2}})
    trainer = start_run(config, lambda record: None)
    rollouts = trainer.next_rollouts()
    rates = teacher_pass_rates(
        trainer.models.teacher,
        rollouts,
        trainer.session.verify,
        config.rollout,
        samples=2,
        seed=0,
        step=0,
    )
    assert rates.keys() == {r.prompt.id for r in rollouts}
    weights = trainer.prompt_weights(rollouts)
    passed = torch.tensor([rates[r.prompt.id] >= 0.5 for r in rollouts])
    assert (weights[~passed] == 0).all()
    if passed.any():
        assert weights.mean().item() == pytest.approx(1)


def test_a_prompt_on_which_the_teacher_cannot_be_judged_passes_the_gate_untouched(settings):
    config = settings(objective={"prompt_weight": {"type": "teacher_gate", "samples": 2}})
    trainer = start_run(config, lambda record: None)
    rollouts = trainer.next_rollouts()
    unknown = rollouts[0].prompt.id
    trainer.session = replace(
        trainer.session, verify=lambda prompt, text: None if prompt.id == unknown else 0.0
    )
    expected = [float(r.prompt.id == unknown) for r in rollouts]
    assert trainer.prompt_weights(rollouts).tolist() == expected
    trainer.update(rollouts)
    assert trainer.steps[0]["grad_norm"] > 0


# --- state sources ---------------------------------------------------------------------------


def test_student_share_mixes_the_teachers_rollouts_in(settings):
    shares = {}
    for share in (0.0, 0.5, 1.0):
        config = settings(f"share{share}", rollout={"student_share": share, "group_size": 30})
        trainer = start_run(config, lambda record: None)
        rollouts = trainer.next_rollouts()
        assert [r.prompt.id for r in rollouts] == [
            p.prompt.id for p in trainer.prompts_of(0) for _ in range(30)
        ]
        shares[share] = sum(r.source == "student" for r in rollouts) / len(rollouts)
        trainer.update(rollouts)
        drift = "rollout/drift_k3" in trainer.steps[0]
        assert drift == (share > 0)  # the teacher's tokens have no student log-probability
    assert (shares[0.0], shares[1.0]) == (0, 1)
    assert 0.3 < shares[0.5] < 0.7  # 120 draws: four standard errors


@pytest.mark.parametrize(
    "objective", [{"type": "sampled"}, {"return_to_go": 1.0}, {"reward": {}}], ids=str
)
def test_policy_gradients_refuse_the_teachers_rollouts(settings, objective):
    with pytest.raises(UsageError, match=r"policy gradient.*student_share"):
        settings(objective=objective, rollout={"student_share": 0.5})


def test_delayed_rollouts_have_the_age_they_were_asked_for(settings):
    config = settings(rollout={"delay_steps": 2}, run={"steps": 5}, optimizer={"lr": 1e-2})
    result = train(config)
    steps = [r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
    assert [s["rollout/age"] for s in steps] == [0, 1, 2, 2, 2]
    assert steps[0]["rollout/drift_k3"] < 1e-6
    assert steps[4]["rollout/drift_k3"] > 1e-5


def test_steps_whose_rollouts_are_decoded_together_have_ages_that_count_up(settings):
    def ages(name, **rollout):
        result = train(settings(name, rollout=rollout, run={"steps": 5}, optimizer={"lr": 1e-2}))
        steps = [r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
        return [s["rollout/age"] for s in steps], steps

    together, steps = ages("together", steps_per_generation=3)
    assert together == [0, 1, 2, 0, 1]
    sampled = ["perf/rollout_tokens_per_s" in s for s in steps]
    assert sampled == [True, False, False, True, False]
    # The rate is of all the tokens that were drawn, not of those of the step.
    drawn = steps[0]["perf/rollout_s"] * steps[0]["perf/rollout_tokens_per_s"]
    assert drawn == pytest.approx(sum(s["tokens"] for s in steps[:3]))
    alone, first = ages("alone")
    assert alone == [0] * 5
    assert steps[0]["loss"] == pytest.approx(first[0]["loss"], abs=1e-5)  # the same samples
    late, _ = ages("late", steps_per_generation=3, delay_steps=1)
    assert late == [0, 1, 2, 1, 2]


def test_no_prompt_is_decoded_twice_in_one_generation(settings):
    """Where an epoch ends, so does the generation: a sample is known by its prompt."""
    config = settings(rollout={"steps_per_generation": 4, "prompts_per_step": 4})
    trainer = start_run(config, lambda record: None)
    of_epoch = len(trainer.session.prompts) // 4
    first, seen = 0, []
    while first < 2 * of_epoch:
        steps = trainer.generation(first)
        assert 1 <= len(steps) <= 4
        ids = [prompt.prompt.id for step in steps for prompt in step]
        assert len(set(ids)) == len(ids)
        first += len(steps)
        seen.append(len(steps))
    assert first == 2 * of_epoch
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]
    assert of_epoch % 4 or set(seen) == {4}


GROWING = {"horizon": {"start": 2, "steps": 3}, "max_new_tokens": 8}


def test_a_horizon_grows_in_equal_parts_to_the_limit(settings):
    rollout = settings(rollout=GROWING).rollout
    assert [rollout.at(step).max_new_tokens for step in range(5)] == [2, 4, 6, 8, 8]
    assert rollout.at(3) == rollout
    for start in (8, 9):
        with pytest.raises(UsageError, match=r"grows to max_new_tokens, which is 8"):
            settings(rollout={"horizon": {"start": start, "steps": 3}, "max_new_tokens": 8})


def test_cut_rollouts_begin_as_whole_ones_do_and_are_neither_judged_nor_measured(settings):
    config = settings(rollout=GROWING, run={"steps": 5})
    cut, whole = (
        start_run(c, lambda record: None)
        for c in (config, settings("whole", rollout={"max_new_tokens": 8}))
    )
    one, other = (trainer.sample(trainer.prompts_of(0), 0) for trainer in (cut, whole))
    assert [r.completion_ids for r in one] == [r.completion_ids[:2] for r in other]
    assert all(r.reward is None for r in one)
    assert all(r.reward is not None for r in other)
    result = train(config, overwrite=True)
    steps = [r for r in read_jsonl(result.run / "metrics.jsonl") if r["kind"] == "train"]
    assert [s.get("rollout/horizon") for s in steps] == [2, 4, 6, None, None]
    for key in ("rollout/length", "rollout/truncated", "rollout/accuracy"):
        assert [key in s for s in steps] == [False] * 3 + [True] * 2, key
    assert steps[0]["tokens"] <= 2 * len(one) < steps[3]["tokens"]
    named = {cause.name for cause in explain(str(result.run)).causes}
    assert not named & {"response_limit", "length_inflation"}


@pytest.mark.parametrize(
    "sections",
    [
        {"objective": {"reward": {}}},
        {"objective": {"weight": "correctness"}},
        {"teacher": {"user_prompt": "{correct} {question}"}},
    ],
    ids=str,
)
def test_what_needs_verdicts_refuses_rollouts_that_are_cut(settings, sections):
    with pytest.raises(UsageError, match=r"before they have an answer; leave rollout.horizon out"):
        settings(**sections, rollout={**GROWING, "group_size": 2})


@pytest.mark.parametrize("rollout", [{"delay_steps": 2}, {"steps_per_generation": 4}], ids=str)
def test_pending_rollouts_survive_a_resume_to_the_bit(settings, rollout):
    def run(name, steps, **options):
        return train(settings(name, rollout=rollout, run={"steps": steps}), **options)

    straight = run("straight", 5)
    run("resumed", 3)
    resumed = run("resumed", 5, resume=True)
    for file in ("metrics.jsonl", "positions.jsonl"):
        one, other = (
            [
                {k: v for k, v in r.items() if not k.startswith("perf/")}
                for r in read_jsonl(result.run / file)
                if r.get("kind") != "eval"
            ]
            for result in (straight, resumed)
        )
        assert one == other


# --- presets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_trains(preset, gpt2_pair, tmp_path, capsys):
    prompts = write_jsonl(tmp_path / "prompts.jsonl", sums(10))
    words = ["train", "--preset", preset, "--student.path", str(gpt2_pair[0])]
    words += ["--teacher.path", str(gpt2_pair[1]), "--data.prompts", str(prompts)]
    words += ["--rollout.prompts_per_step", "3", "--rollout.max_new_tokens", "6"]
    words += ["--run.dir", str(tmp_path / "run"), "--run.steps", "2", "--data.held_out", "2"]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_a_preset_lies_under_what_the_user_says(gpt2_pair, tmp_path):
    from tutelage.config import load_config

    path = tmp_path / "run.yaml"
    path.write_text(
        "preset: paper_top_k\nstudent: {path: s}\nteacher: {path: t}\ndata: {prompts: p}\n"
        "objective: {k: 8}\noptimizer: {lr: 1.0e-5}\n"
    )
    config = load_config(path)
    assert (config.objective.k, config.objective.tail.type) == (8, "reference_code")
    assert (config.optimizer.lr, config.optimizer.weight_decay) == (1e-5, 0.01)
    assert config.rollout.group_size == 4
    replaced = load_config(path, ["--objective", "{type: full}"])
    assert replaced.objective.type == "full"


def test_an_unknown_preset_is_refused_with_a_suggestion(capsys):
    assert main(["presets", "paper_topk"]) == 2
    assert "Did you mean 'paper_top_k'?" in capsys.readouterr().err
    assert main(["presets", "recommended"]) == 0
    assert "union" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ({"type": "k1"}, "expected gradient E_p grad log p = 0"),
        ({"type": "k3"}, "expected gradient of the forward KL"),
        ({"type": "top_k_advantage"}, "does not depend on that token"),
        ({"type": "clamped_top_k"}, "loses its gradient"),
        ({"type": "full", "k": 3}, "objective.k does not exist"),
        ({"type": "sampled", "tail": "bucket"}, "objective.tail does not exist"),
        ({"divergence": {"type": "power", "alpha": 0}}, "objective.divergence.alpha"),
        ({"divergence": {"type": "skew", "alpha": 1}}, "objective.divergence.alpha"),
        ({"divergence": {"type": "mix", "forward": 0}}, "objective.divergence.forward"),
        ({"weight": {"type": "tip", "unsure": 0}}, "objective.weight.unsure"),
        ({"return_to_go": 1.5}, "objective.return_to_go"),
        ({"reward": {"schedule": {"type": "anneal", "start": 3, "end": 2}}}, "must exceed start"),
        ({"target": {"type": "shift"}}, "objective.target.teacher_base is missing"),
        ({"brake": {}}, "objective.brake.coefficient is missing"),
        ({"brake": {"coefficient": 1, "reference": "start"}}, "write {path: start}"),
    ],
)
def test_wrong_objectives_cannot_be_written(settings, objective, expected):
    with pytest.raises(UsageError) as caught:
        settings(objective=objective)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "key", ["server", "system_prompt", "template", "chat_template", "user_prompt"]
)
@pytest.mark.parametrize(
    ("section", "place"),
    [
        ({"brake": {"coefficient": 0.1, "reference": {"path": "r"}}}, "brake.reference"),
        ({"target": {"type": "shift", "teacher_base": {"path": "r"}}}, "target.teacher_base"),
        (
            {"target": {"type": "extrapolated", "reference": {"path": "r"}}},
            "target.reference",
        ),
    ],
    ids=["brake", "shift", "extrapolated"],
)
def test_a_reference_is_in_process_and_reads_what_the_student_reads(settings, section, place, key):
    part, name = place.split(".")
    section[part][name] = {"path": "r", key: {"url": "http://127.0.0.1:1"}}
    with pytest.raises(UsageError) as caught:
        settings(objective=section)
    known = "Known: attention, device, dtype, path, revision."
    assert str(caught.value) == f"the config: objective.{place}.{key} does not exist. {known}"


def test_k_beyond_the_vocabulary_is_refused_at_the_start(settings):
    for objective in ({"k": 1000}, {"type": "sampled", "baseline": {"type": "kl", "k": 1000}}):
        with pytest.raises(UsageError, match="k is 1000, but the vocabulary has 300"):
            train(settings(objective=objective))


def test_prompt_weights_need_verdicts_and_groups(settings):
    weighted = {"prompt_weight": "pass_rate"}
    with pytest.raises(UsageError, match="needs data"):
        settings(objective=weighted, data={"verifier": None})
    with pytest.raises(UsageError, match="group_size >= 2, not 1"):
        settings(objective=weighted, rollout={"group_size": 1})
