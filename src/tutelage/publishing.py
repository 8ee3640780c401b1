"""The finished student: a folder that transformers loads, its model card, and its way to a hub."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from tutelage.config import Config, ModelConfig, StudentConfig
from tutelage.config.base import Section
from tutelage.data.render import foreign_template
from tutelage.errors import MachineError, ServerError, UsageError, first_line
from tutelage.metrics import Record
from tutelage.models.average import FILE as AVERAGE
from tutelage.models.checkpoints import HUB_ID, is_hub_id
from tutelage.models.loading import load_model
from tutelage.runs.checkpoints import MANIFEST
from tutelage.runs.directory import open_run
from tutelage.version import __version__

STUDENT = "student"
_OF_THE_RUN = (MANIFEST, "state.json", "optimizer*.safetensors", AVERAGE)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What the finished student is, for its card."""

    config: Config
    """The resolved settings of its run."""
    step: int
    """Optimizer steps its weights have taken."""
    steps: int
    """Optimizer steps of the run so far."""
    evaluations: Mapping[int, Record]
    """Held-out evaluations by their step."""
    metric: str
    """What the best step was chosen by: accuracy or reverse_kl."""
    improved: bool
    """Whether an evaluation during training was better than the one before it."""


def write_student(folder: Path, checkpoint: Path, student: StudentConfig, card: str) -> Path:
    """The checkpoint's student alone in a folder of its own, with this model card.

    Weights are linked where the file system can, so they take no more of the disk. A LoRA
    student is merged on the CPU, in its own precision, unless the settings say otherwise. A chat
    template that was named for it goes along: it learned to answer under no other.
    """
    temporary = folder.with_name(f"tmp.{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if student.lora is not None and student.lora.merge:
        settings = ModelConfig(path=str(checkpoint), dtype=student.dtype, device="cpu")
        load_model(settings, "student").save(temporary)
    else:
        for file in checkpoint.iterdir():
            if not any(fnmatch(file.name, pattern) for pattern in _OF_THE_RUN):
                _link(file, temporary / file.name)
    if (source := student.chat_template) not in (None, "own"):
        template = temporary / "chat_template.jinja"
        template.unlink(missing_ok=True)  # it may be the checkpoint's
        template.write_text(foreign_template(source, "student"), encoding="utf-8")
    (temporary / "README.md").write_text(card, encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    return folder


def model_card(finished: Finished) -> str:
    """The card of a finished student of a run."""
    config = finished.config
    held_out = config.data.eval_prompts
    return card(
        config,
        how="Trained by on-policy distillation: the student sampled, the teacher scored every "
        "token the student visited, the student moved towards the teacher.",
        tag="on-policy-distillation",
        facts={
            "prompts": f"`{source_name(config.data.prompts)}`",
            "held out": f"`{source_name(held_out)}`" if held_out else "part of the prompts",
            "steps": f"{finished.step} of {finished.steps}",
        },
        evaluation=_evaluation(finished),
        settings={
            "objective": changed_settings(config.objective),
            "rollout": changed_settings(config.rollout),
            "optimizer": changed_settings(config.optimizer),
        },
    )


def card(
    config: Config,
    *,
    how: str,
    tag: str,
    facts: Mapping[str, str],
    evaluation: Sequence[str],
    settings: Mapping[str, Any],
) -> str:
    """A model card, metadata first; of paths the last part alone.

    Args:
        config: whose student and teacher it is about.
        how: a sentence about the training.
        tag: what it is called on a hub.
        facts: further rows of the table.
        evaluation: lines about how good it is.
        settings: what was set other than by default.
    """
    from huggingface_hub import ModelCardData

    student, teacher = config.student, config.teacher_model
    merged = student.lora is None or student.lora.merge
    data = ModelCardData(
        base_model=student.path if is_hub_id(student.path) else None,
        library_name="transformers" if merged else "peft",
        pipeline_tag="text-generation",
        tags=["tutelage", tag, *(["lora"] if student.lora else [])],
    )
    if student.lora is not None:
        settings = {**settings, "lora": changed_settings(student.lora)}
    lines = [
        f"# {_name(student.path)}, distilled from {_name(teacher.path)}",
        "",
        how,
        "",
        "| | |",
        "|---|---|",
        f"| student | {_model(student)} |",
        f"| teacher | {_teacher(config)} |",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        f"| weights | {_weights(student)} |",
        f"| made with | tutelage {__version__} |",
        "",
        "## Held-out evaluation",
        "",
        *evaluation,
        "",
        "## Use",
        "",
        "```python",
        *_use(student, merged),
        "```",
        "",
        "## Settings",
        "",
        "```yaml",
        yaml.safe_dump(dict(settings), sort_keys=False).rstrip(),
        "```",
        "",
        "The licences of student, teacher and prompts apply.",
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n"


def push(run: str | Path, repository: str, *, public: bool = False) -> str:
    """The verb `push`: upload a run's finished student to a hub, with the hub's own login.

    Returns:
        The address of the upload.

    Raises:
        UsageError: the run has no finished student, or the name is no hub id.
        MachineError: nobody is logged in.
        ServerError: the hub refuses or cannot be reached.
    """
    folder = open_run(run).path / STUDENT
    if not (folder / "README.md").is_file():
        raise UsageError(
            f"{run} has no finished student ({STUDENT}/README.md); it is written when a run ends"
        )
    if not HUB_ID.fullmatch(repository):
        raise UsageError(f"{repository!r} is no hub id; write owner/name")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalTokenNotFoundError

    api = HfApi(token=True)  # asks for a login before it asks the network
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                commit_message=f"Upload the student of a tutelage {__version__} run",
            )
        )
    except LocalTokenNotFoundError:
        raise MachineError("nobody is logged in to the hub here; run hf auth login") from None
    except Exception as error:  # a network fails in every way
        raise ServerError(f"{repository} was not uploaded: {first_line(error)}") from None


def _link(source: Path, target: Path) -> None:
    # Only weights: a reader may edit small files, and the checkpoint's hashes must stay true.
    if source.suffix == ".safetensors":
        try:
            os.link(source, target)
            return
        except OSError:  # another file system, or one without links
            pass
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)


def _evaluation(finished: Finished) -> list[str]:
    found = finished.evaluations
    shown = [s for s in dict.fromkeys((0, finished.step)) if s in found]
    if not shown:
        return ["None was made."]
    lines = ["| | accuracy (95 % interval) | questions | reverse KL, nats per token |"]
    lines += ["|---|---|---|---|"]
    for step in shown:
        record = found[step]
        accuracy = "not verified"
        if "accuracy" in record:
            accuracy = (
                f"{record['accuracy']:.3f} ({record['accuracy/low']:.3f} to "
                f"{record['accuracy/high']:.3f})"
            )
        kl = f"{record['kl/reverse']:.4g}" if "kl/reverse" in record else "undefined"
        name = "before training" if step == 0 else f"this student, step {step}"
        lines.append(f"| {name} | {accuracy} | {record.get('accuracy/questions', '')} | {kl} |")
    settings = finished.config.evaluation
    samples = "1 sample" if settings.samples == 1 else f"{settings.samples} samples"
    lines += ["", f"{samples} a question at temperature {settings.temperature}."]
    if len(shown) > 1 and not finished.improved:
        return [
            *lines,
            f"By {finished.metric}, no evaluation during training was better than the one before "
            "it; these are the last weights.",
        ]
    if finished.step == finished.steps or finished.step not in found:
        return lines
    return [
        *lines,
        f"This step was chosen as the best of {len(found)} evaluations by {finished.metric} on "
        "these same questions, so its numbers are somewhat too good.",
    ]


def _weights(student: StudentConfig) -> str:
    lora = student.lora
    if lora is None:
        return "all weights trained"
    if lora.merge:
        return f"LoRA of rank {lora.rank}, merged"
    return f"LoRA adapter of rank {lora.rank}; the student is its base model"


def _use(student: StudentConfig, merged: bool) -> Sequence[str]:
    if merged:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("this folder")',
            'tokenizer = AutoTokenizer.from_pretrained("this folder")',
        )
    return (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{_name(student.path)}")',
        'model = PeftModel.from_pretrained(base, "this folder")',
    )


def _teacher(config: Config) -> str:
    if isinstance(config.teacher, ModelConfig):
        return _model(config.teacher)
    return f"the student itself ({config.teacher.type}), under a prompt of its own"


def _model(settings: ModelConfig) -> str:
    revision = f" at `{settings.revision}`" if settings.revision else ""
    return f"`{_name(settings.path)}`{revision}"


def _name(path: str) -> str:
    return path if is_hub_id(path) else Path(path).expanduser().absolute().name


def source_name(prompts: str) -> str:
    """A source of prompts without the folders it lies in."""
    return prompts if ":" in prompts else Path(prompts).name


def changed_settings(section: Section) -> dict[str, Any]:
    """The settings that are not the default, with the last part of every path."""

    def told(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: told(part, name) for name, part in value.items()}
        return _name(value) if key in ("path", "table") else value

    changed = told(section.model_dump(mode="json", exclude_defaults=True))
    kind = getattr(section, "type", None)
    return {"type": kind, **changed} if kind is not None else changed
