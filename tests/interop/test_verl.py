"""verl 0.9.1 takes what `tutelage export verl` writes, and computes our losses."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tutelage.config import parse_config
from tutelage.data.prompts import load_prompts
from tutelage.exporting import verl_loss
from tutelage.exporting.verl import export_verl
from tutelage.lab.embedded import EMBEDDED_SPEC, VERIFIER, model_path
from tutelage.lab.tasks import write_prompts
from tutelage.objective import token_losses

LENGTHS = ((2, 4), (3, 2), (2, 5))  # tokens of prompt and response
ROWS = sum(map(sum, LENGTHS))
VOCABULARY = 12


@pytest.fixture
def config(tmp_path):
    write_prompts(tmp_path / "prompts.jsonl", EMBEDDED_SPEC.task.train_prompts(60, 0))

    def make(**sections):
        tree = {
            "student": {"path": str(model_path("student"))},
            "teacher": {"path": str(model_path("compatible"))},
            "data": {
                "prompts": str(tmp_path / "prompts.jsonl"),
                "held_out": 10,
                "verifier": VERIFIER.model_dump(),
            },
            "rollout": {"prompts_per_step": 8, "group_size": 2, "max_new_tokens": 28},
            "objective": {"support": "teacher", "k": 4},
            "optimizer": {"schedule": "cosine", "warmup_steps": 2},
            "run": {"dir": str(tmp_path / "it's a run, {odd}"), "steps": 10},
        }
        return parse_config({**tree, **{n: {**tree.get(n, {}), **s} for n, s in sections.items()}})

    return make


def compose(folder):
    """verl's own configuration under the exported overrides."""
    import verl
    from hydra import compose, initialize_config_dir

    place = Path(verl.__file__).parent / "trainer" / "config"
    with initialize_config_dir(str(place), version_base=None):
        return compose("ppo_trainer", (folder / "overrides.txt").read_text().splitlines())


def test_these_are_tests_of_the_version_that_is_promised():
    from tutelage.exporting.verl import VERSION

    assert version("verl") == VERSION


def test_the_overrides_compose_and_say_what_the_config_says(config, tmp_path):
    template = {"enable_thinking": False, "style": "it's {short}, \\'or\\' not"}
    lora = {"rank": 8, "alpha": 4, "target_modules": ["q_proj", "v_proj"]}
    settings = config(student={"template": template, "lora": lora})
    export_verl(settings, tmp_path / "out", gpus=2, teacher_gpus=3)
    found = compose(tmp_path / "out")
    assert found.trainer.default_local_dir == settings.run.dir
    assert dict(found.data.apply_chat_template_kwargs) == template
    assert found.data.train_batch_size == found.actor_rollout_ref.actor.ppo_mini_batch_size == 8
    assert found.actor_rollout_ref.rollout.n == 2
    assert found.actor_rollout_ref.rollout.response_length == 28
    assert list(found.actor_rollout_ref.model.target_modules) == ["q_proj", "v_proj"]
    assert found.actor_rollout_ref.actor.optim.lr == settings.optimizer.lr
    assert found.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 8
    assert found.distillation.distillation_loss.log_prob_min_clamp is None
    assert found.distillation.n_gpus_per_node == 3
    assert found.trainer.total_epochs == 2  # 50 prompts, 8 a step, 10 steps


PROBE = """
import sys
from pathlib import Path
import verl
sys.path.append(sys.argv[1])
from test_verl import compose
from transformers import AutoTokenizer
from verl.trainer.distillation.losses import get_distillation_loss_settings
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.dataset.rl_dataset import RLHFDataset
found = compose(Path(sys.argv[2]))
told = omega_conf_to_dataclass(found.distillation)
assert told.distillation_loss.loss_settings is get_distillation_loss_settings("tutelage")
(teacher,) = told.teacher_models.values()
assert (teacher.num_replicas, teacher.inference.engine_kwargs["vllm"]["max_logprobs"]) == (1, 4)
actor = omega_conf_to_dataclass(found.actor_rollout_ref.actor)
assert actor.loss_agg_mode == "token-mean" and actor.optim.min_lr_ratio == 0.1
tokenizer = AutoTokenizer.from_pretrained(found.actor_rollout_ref.model.path)
rows = RLHFDataset([found.data.train_files], tokenizer, found.data)
assert len(rows) == 50
row = rows[0]
reward = get_custom_reward_fn(found)
given = {"data_source": row["data_source"], "extra_info": row["extra_info"]}
truth = row["reward_model"]["ground_truth"]
print(row["extra_info"]["index"], truth, reward(solution_str=sys.argv[3].replace("?", truth),
      ground_truth=truth, **given), reward(solution_str="no", ground_truth=truth, **given))
"""


def test_verl_loads_the_plugins_reads_the_rows_and_judges_answers(config, tmp_path):
    settings = config()
    export_verl(settings, tmp_path / "out")
    script = (tmp_path / "out" / "run.sh").read_text()
    lines = [line for line in script.splitlines() if line.startswith("export ")]
    # As the script starts it, so the loss is registered by verl itself on import.
    words = [sys.executable, "-c", PROBE, Path(__file__).parent, tmp_path / "out", "so #?"]
    shell = "; ".join([*lines, 'exec "$@"'])
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    index, truth, right, wrong = done.stdout.splitlines()[-1].split()
    answers = {p.id: p.answer for p in load_prompts(settings.data.prompts)}
    assert answers[index] == truth
    assert (float(right), float(wrong)) == (1.0, 0.0)


@pytest.fixture
def register(monkeypatch):
    """Registers an objective, and takes it out again."""
    from verl.trainer.distillation import losses
    from verl.trainer.distillation.fsdp import losses as at_logits

    monkeypatch.setattr(at_logits, "compute_forward_kl_topk", at_logits.compute_forward_kl_topk)
    yield lambda objective: verl_loss.register(objective.model_dump(mode="json"))
    for registry in (losses.DISTILLATION_LOSS_REGISTRY, losses.DISTILLATION_SETTINGS_REGISTRY):
        registry.pop(verl_loss.LOSS_MODE, None)


def jagged(values):
    lengths = torch.tensor([0, *(sum(pair) for pair in LENGTHS)]).cumsum(0)
    return torch.nested.nested_tensor_from_jagged(values, lengths)


def drawn(seed):
    """Logits of student and teacher at every token [N, V], and the tokens themselves."""
    draw = torch.Generator().manual_seed(seed)
    logits, teacher = (2 * torch.randn(ROWS, VOCABULARY, generator=draw) for _ in range(2))
    return logits, teacher.log_softmax(-1), torch.randint(VOCABULARY, (ROWS,), generator=draw)


def states():
    """Rows from which a token of a response is drawn, in order."""
    ends = torch.tensor([sum(pair) for pair in LENGTHS]).cumsum(0).tolist()
    return [
        i
        for (_, size), end in zip(LENGTHS, ends, strict=True)
        for i in range(end - size - 1, end - 1)
    ]


def verl_loss_and_gradient(logits, teacher, tokens, mode, k, aggregation):
    """By verl's own functions, in the order in which its engine calls them."""
    from verl.trainer.distillation import distillation_ppo_loss
    from verl.utils import tensordict_utils as tu
    from verl.workers.config import (
        DistillationConfig,
        DistillationLossConfig,
        FSDPActorConfig,
    )

    last = torch.tensor([sum(pair) for pair in LENGTHS]).cumsum(0) - 1
    loss = DistillationLossConfig(
        loss_mode=mode,
        topk=k or 1,
        use_task_rewards=False,
        use_policy_gradient=False,
        loss_max_clamp=None,
        log_prob_min_clamp=None,
    )
    distillation = DistillationConfig(distillation_loss=loss)
    actor = FSDPActorConfig(
        strategy="fsdp", rollout_n=1, ppo_micro_batch_size_per_gpu=1, loss_agg_mode=aggregation
    )
    logits = logits.clone().requires_grad_()
    following = tokens.roll(-1)
    if k:
        likely = teacher.topk(k)
        values, ids = likely.values.clone(), likely.indices.clone()
    else:
        values, ids = teacher.gather(1, following[:, None]), following[:, None].clone()
    values[last], ids[last] = 0.0, 0  # as verl pads them
    halves = [tokens.split([n for pair in LENGTHS for n in pair])[i::2] for i in (0, 1)]
    prompts, responses = (
        torch.nested.as_nested_tensor(list(h), layout=torch.jagged) for h in halves
    )
    mask = [torch.ones_like(h) for h in halves[1]]
    data = tu.get_tensordict(
        {
            "teacher_logprobs": jagged(values),
            "teacher_ids": jagged(ids),
            "prompts": prompts,
            "responses": responses,
            "response_mask": torch.nested.as_nested_tensor(mask, layout=torch.jagged),
        },
        non_tensor_dict={
            "dp_size": 1,
            "batch_num_tokens": sum(len(h) for h in halves[1]),
            "global_batch_size": len(LENGTHS),
        },
    )
    output = {}
    if k:
        found = distillation_ppo_loss(actor, distillation, None, data, student_logits=logits[None])
        output = {name: jagged(value.squeeze(0)) for name, value in found.items()}
    logp = logits.log_softmax(-1).gather(1, following[:, None]).squeeze(1)
    output["log_probs"] = jagged(logp)
    value, metrics = distillation_ppo_loss(actor, distillation, output, data)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.detach(), gradient, metrics


OBJECTIVES = [
    {"type": "sampled"},
    {"type": "sampled", "divergence": "forward_kl"},
    {"type": "sampled", "bound": 0.5},
    {"type": "sampled", "divergence": {"type": "jsd", "beta": 0.3}},
    *(
        {"type": "top_k", "support": "teacher", "k": 3, "divergence": divergence, "tail": tail}
        for divergence, tail in (
            ("reverse_kl", "bucket"),
            ("forward_kl", "bucket"),
            ("reverse_kl", "renormalise"),
            ("forward_kl", "drop"),
            ("jsd", "bucket"),
            ({"type": "skew", "alpha": 0.2}, "bucket"),
            ({"type": "mix", "forward": 0.3}, "bucket"),
            ("reverse_kl", "reference_code"),
        )
    ),
]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_verl_computes_our_losses_and_gradients(register, objective, aggregation):
    least = {"student": {"path": "s"}, "teacher": {"path": "t"}, "data": {"prompts": "p"}}
    settings = parse_config({**least, "objective": objective}).objective
    register(settings)
    mode = {"token_mean": "token-mean", "sequence_mean": "seq-mean-token-mean"}[aggregation]
    for seed in range(3):
        logits, teacher, tokens = drawn(seed)
        k = getattr(settings, "k", 0)
        value, gradient, _ = verl_loss_and_gradient(logits, teacher, tokens, "tutelage", k, mode)
        rows = states()
        own = logits.clone().requires_grad_()
        losses = token_losses(
            settings, own.log_softmax(-1)[rows], teacher[rows], tokens.roll(-1)[rows]
        ).losses
        sizes = [size for _, size in LENGTHS]
        if aggregation == "token_mean":
            expected = losses.mean()
        else:
            expected = torch.stack([part.mean() for part in losses.split(sizes)]).mean()
        (wanted,) = torch.autograd.grad(expected, own)
        torch.testing.assert_close(value, expected.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


def test_other_modes_of_verl_stay_what_they_were(config, register):
    logits, teacher, tokens = drawn(0)
    arguments = (logits, teacher, tokens, "forward_kl_topk", 3, "token-mean")
    before, gradient, metrics = verl_loss_and_gradient(*arguments)
    register(config(objective={"divergence": "reverse_kl"}).objective)
    after, same, _ = verl_loss_and_gradient(*arguments)
    assert torch.equal(before, after)
    assert torch.equal(gradient, same)
    assert 0 < metrics["distillation/overlap_ratio"] < 1


def test_a_strategy_whose_logits_pass_elsewhere_is_refused(config, register):
    register(config().objective)
    from verl.trainer.distillation.losses import get_distillation_loss_fn

    strategy = type("Actor", (), {"strategy": "megatron"})()
    with pytest.raises(ValueError, match="not megatron"):
        get_distillation_loss_fn("tutelage")(strategy, None, {}, {})


def test_rewards_are_our_verdicts():
    score = verl_loss.scorer({"prompts": "p", "verifier": {"type": "numeric"}})
    told = {"index": "1", "metadata": "{}", "question": "What is 1 + 2?"}
    assert score("x", "it is 3", "3", told) == 1.0
    assert score("x", "it is 4", "3", told) == 0.0
    assert verl_loss.scorer({"prompts": "p"})("x", "it is 3", None, None) == 0.0
