"""The settings of verl's ppo_trainer.yaml that a config comes to, and their grammar."""

from collections.abc import Iterator, Mapping
from math import ceil
from pathlib import Path
from typing import Any

from tutelage.config import Config, TopK
from tutelage.exporting.verl_loss import LOSS_MODE
from tutelage.paths import usable_path

LOSS, REWARD = "tutelage_verl_loss", "tutelage_verl_reward"
"""Modules that the loss and the rewards are written to."""


def overrides(
    config: Config, folder: Path, rows: int, held_out: bool, gpus: int, teacher_gpus: int
) -> dict[str, Any]:
    """Hydra keys of verl's ppo_trainer.yaml with their values."""
    tree = {
        "data": _data(config, folder),
        "algorithm": {"adv_estimator": "grpo"},
        "actor_rollout_ref": _student(config, gpus),
        "distillation": _distillation(config, teacher_gpus),
        "reward": {
            "custom_reward_function": {
                "path": str(folder / f"{REWARD}.py"),
                "name": "compute_score",
            }
        },
        "trainer": _trainer(config, rows, held_out, gpus),
    }
    flat = dict(_flat(tree))
    for name, value in config.student.template.items():
        flat[f"+data.apply_chat_template_kwargs.{name}"] = value
    # Ray's workers on other hosts import the loss too; the folder must be there as well.
    for name, value in environment(folder).items():
        flat[f"+ray_kwargs.ray_init.runtime_env.env_vars.{name}"] = value
    return flat


def _data(config: Config, folder: Path) -> dict[str, Any]:
    return {
        "train_files": str(folder / "train.parquet"),
        "val_files": str(folder / "test.parquet"),
        "train_batch_size": config.rollout.prompts_per_step,
        "max_prompt_length": config.data.max_prompt_tokens,
        "max_response_length": config.rollout.max_new_tokens,
        "filter_overlong_prompts": True,
        "seed": config.run.seed,
    }


def _student(config: Config, gpus: int) -> dict[str, Any]:
    student, rollout, optimizer = config.student, config.rollout, config.optimizer
    evaluation = config.evaluation
    share = rollout.prompts_per_step * rollout.group_size // gpus
    micro = max(n for n in range(1, min(share, optimizer.micro_batch_size) + 1) if share % n == 0)
    mode = "token-mean" if optimizer.aggregation == "token_mean" else "seq-mean-token-mean"
    return {
        "model": {
            "path": _place(student.path),
            "enable_gradient_checkpointing": student.gradient_checkpointing,
            **_lora(config),
        },
        "actor": {
            "ppo_mini_batch_size": rollout.prompts_per_step,
            "ppo_micro_batch_size_per_gpu": micro,
            "loss_agg_mode": mode,
            "grad_clip": optimizer.grad_clip,
            "optim": {
                "lr": optimizer.lr,
                "betas": list(optimizer.betas),
                "weight_decay": optimizer.weight_decay,
                "clip_grad": optimizer.grad_clip,
                "lr_warmup_steps": optimizer.warmup_steps,
                "lr_scheduler_type": optimizer.schedule,
                "min_lr_ratio": 0.1,
            },
        },
        "rollout": {
            "name": "vllm",
            "n": rollout.group_size,
            "top_p": rollout.top_p,
            "top_k": rollout.top_k or -1,
            "tensor_model_parallel_size": 1,
            "log_prob_micro_batch_size_per_gpu": micro,
            "val_kwargs": {
                "n": evaluation.samples,
                "temperature": evaluation.temperature,
                "top_p": evaluation.top_p,
                "do_sample": evaluation.temperature > 0,
            },
        },
    }


def _distillation(config: Config, teacher_gpus: int) -> dict[str, Any]:
    objective = config.objective
    return {
        "enabled": True,
        "n_gpus_per_node": teacher_gpus,
        "nnodes": 1,
        "distillation_loss": {
            "loss_mode": LOSS_MODE,
            **({"topk": objective.k} if isinstance(objective, TopK) else {}),
            "use_task_rewards": False,
            "use_policy_gradient": False,
            "loss_max_clamp": None,
            "log_prob_min_clamp": None,
        },
        "teacher_models": {
            "teacher_model": {
                "model_path": _place(config.teacher_model.path),
                "inference": {
                    "tensor_model_parallel_size": 1,
                    "max_model_len": config.data.max_prompt_tokens
                    + config.rollout.max_new_tokens
                    + 1,
                },
            }
        },
    }


def _trainer(config: Config, rows: int, held_out: bool, gpus: int) -> dict[str, Any]:
    run = config.run
    return {
        "n_gpus_per_node": gpus,
        "nnodes": 1,
        "total_training_steps": run.steps,
        "total_epochs": ceil(run.steps / max(1, rows // config.rollout.prompts_per_step)),
        "save_freq": run.save_every or run.steps,
        "test_freq": (config.evaluation.every or run.steps) if held_out else -1,
        "val_before_train": held_out,
        "max_actor_ckpt_to_keep": run.keep,
        "logger": ["console", "file", *(tracker.type for tracker in run.trackers)],
        "project_name": "tutelage",
        "experiment_name": Path(run.dir).name,
        "default_local_dir": str(usable_path(run.dir).absolute()),
    }


def _lora(config: Config) -> dict[str, Any]:
    lora = config.student.lora
    if lora is None:
        return {}
    targets = lora.target_modules
    return {
        "lora_rank": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": targets if isinstance(targets, str) else list(targets),
    }


def _place(path: str) -> str:
    """A folder as it is found from anywhere; a hub id as it is."""
    folder = usable_path(path, "model")
    return str(folder.absolute()) if folder.is_dir() else path


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def environment(folder: Path) -> dict[str, str]:
    """What the processes of a run in this folder must know."""
    return {
        "VERL_USE_EXTERNAL_MODULES": LOSS,
        "PYTHONPATH": str(folder),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
    }


def hydra(value: Any) -> str:
    """A value in the grammar of Hydra's overrides."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            # A backslash stands for itself, but where backslashes stand before a quote.
            quoted = value.replace("\\'", "\\\\'").replace("'", "\\'")
            return f"'{quoted}'"
        case Mapping():
            inside = ",".join(f"{key}:{hydra(part)}" for key, part in value.items())
            return f"{{{inside}}}"
        case list() | tuple():
            return f"[{','.join(map(hydra, value))}]"
        case _:
            return repr(value)
