"""Is this machine fit for a run, and what can the servers do that it names?"""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from tutelage.config import Config, ServerConfig
from tutelage.errors import ServerError, TutelageError, UsageError
from tutelage.paths import usable_path
from tutelage.planning import plan

GIB = 2**30

FLOORS = {
    "torch": ("2.10", "a .pt file could run code in spite of weights_only (CVE-2026-24747)"),
    "transformers": (
        "5.5",
        "a model folder ran code without trust_remote_code (CVE-2026-4372, CVE-2026-5241)",
    ),
    "jinja2": ("3.1.6", "a chat template left its sandbox (CVE-2025-27516)"),
    "ray": ("2.52", "a web page could run jobs on the dashboard (CVE-2025-62593)"),
    "vllm": ("0.30", "a request could end the engine (CVE-2026-105754)"),
}
"""Versions below which a known fault is open, and the fault. Of vLLM the server's own counts."""

EXTRAS = {
    "hub": "prompts from a hub",
    "lora": "student.lora",
    "ray": "--engine ray, many workers",
    "rescue": "rescue prompts, near copies",
    "semantic": "rescue prompts, search by meaning",
    "serve": "a teacher or student at a vLLM server",
    "track": "TensorBoard, trackio and wandb",
    "verify": "the math verifier, reasoning_gym prompts",
}
"""What each extra is for. Those for work on the project itself are not told."""

Part = Literal["environment", "server"]
Status = Literal["ok", "note", "fault"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    part: Part
    """What it belongs to."""
    name: str
    """What was looked at."""
    status: Status
    """ok; note: worth knowing; fault: a run cannot be trusted, or cannot be."""
    found: str
    """What there is."""
    advice: str = ""
    """What to do, where something is to be done."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at."""

    findings: tuple[Finding, ...]
    """In the order of the report."""

    def faults(self, part: str) -> list[Finding]:
        """What is wrong in the environment or with a server."""
        return [f for f in self.findings if f.part == part and f.status == "fault"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "healthy": not any(f.status == "fault" for f in self.findings),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def table(self) -> str:
        """The findings for a reader."""
        width = max(len(finding.name) for finding in self.findings)
        lines: list[str] = []
        for finding in self.findings:
            lines.append(f"{finding.status:5}  {finding.name:{width}}  {finding.found}")
            if finding.advice:
                lines.append(f"{'':7}{'':{width}}  {finding.advice}")
        return "\n".join(lines)


def doctor(config: Config | None = None) -> Diagnosis:
    """The verb `doctor`: the machine, versions, extras; with settings also what they need.

    Nothing is written and no weights are loaded.
    """
    findings = [*_machine(), *_versions(), *_extras()]
    if config is not None:
        findings += [*_needs(config), *_servers(config)]
    return Diagnosis(tuple(findings))


def _machine() -> Iterator[Finding]:
    python = platform.python_version()
    fit = sys.version_info >= (3, 11)
    yield Finding(
        "environment",
        "python",
        "ok" if fit else "fault",
        python,
        "" if fit else "tutelage needs Python 3.11 or later",
    )
    total, available = memory()
    known = "unknown" if total is None else f"{total / GIB:.1f} GiB"
    if available is not None:
        known += f", {available / GIB:.1f} GiB free"
    yield Finding("environment", "memory", "ok", known)
    yield Finding("environment", "cpus", "ok", str(os.cpu_count()))
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Finding("environment", "gpus", "ok", ", ".join(gpus) or "none")


def _versions() -> Iterator[Finding]:
    for package, (floor, reason) in FLOORS.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            continue
        yield _against_floor("environment", package, found, floor, reason)


def _against_floor(part: Part, name: str, found: str, floor: str, reason: str) -> Finding:
    package = name.split()[-1]
    try:
        fit = Version(found) >= Version(floor)
    except InvalidVersion:
        return Finding(
            part, name, "note", f"{found!a:.40} is no version to compare with {floor}: {reason}"
        )
    if fit:
        return Finding(part, name, "ok", found)
    return Finding(
        part,
        name,
        "fault",
        f"{found}, below {floor}: {reason}",
        f"pip install '{package}>={floor}'",
    )


def _extras() -> Iterator[Finding]:
    missing: dict[str, list[str]] = {}
    for line in requires("tutelage") or ():
        requirement = Requirement(line)
        extra = re.search(r"extra == ['\"]([^'\"]+)", str(requirement.marker or ""))
        if extra is None or extra[1] not in EXTRAS:
            continue
        missing.setdefault(extra[1], [])
        try:
            version(requirement.name)
        except PackageNotFoundError:
            missing[extra[1]].append(requirement.name)
    for name, packages in missing.items():
        found = f"not installed: {', '.join(packages)}" if packages else "installed"
        advice = f"for {EXTRAS[name]}: pip install 'tutelage[{name}]'" if packages else ""
        yield Finding("environment", f"extra {name}", "note" if packages else "ok", found, advice)


def _needs(config: Config) -> Iterator[Finding]:
    try:
        needed = plan(config)
    except UsageError as error:
        yield Finding("environment", "models", "fault", str(error))
        return
    total, available = memory()
    uses_gpu = any(m.device.startswith("cuda") for m in (config.student, config.teacher_model))
    if total is not None and not uses_gpu:
        size = f"{needed.total_bytes / GIB:.2f} GiB of {total / GIB:.1f}"
        if needed.total_bytes > total:
            advice = "lower optimizer.micro_batch_size, or use smaller models"
            yield Finding("environment", "memory of the run", "fault", size, advice)
        elif available is not None and needed.total_bytes > available:
            advice = "other programs hold the rest; end them, or expect swapping"
            yield Finding("environment", "memory of the run", "note", size, advice)
        else:
            yield Finding("environment", "memory of the run", "ok", size)
    # Weights and AdamW's two moments; the kept ones, the best, the last and the one being written.
    size_of_one = needed.student_bytes + needed.optimizer_bytes
    wanted = size_of_one * (config.run.keep + 3)
    folder = _existing(usable_path(config.run.dir, "run.dir"))
    free = shutil.disk_usage(folder).free
    told = f"{wanted / GIB:.2f} GiB of checkpoints, {free / GIB:.1f} GiB free at {folder}"
    short = wanted > free
    yield Finding(
        "environment",
        "disk of the run",
        "fault" if short else "ok",
        told,
        "free some space, lower run.keep, or choose another run.dir" if short else "",
    )
    if not os.access(folder, os.W_OK):
        yield Finding(
            "environment", "run.dir", "fault", f"{folder} cannot be written", "choose another"
        )


def _servers(config: Config) -> Iterator[Finding]:
    for role, model in (("student", config.student), ("teacher", config.teacher_model)):
        if model.server is not None:
            for url in model.server.url:
                last = url == model.server.url[-1]
                yield from _server(config, role, model.server.at(url), last)


def _server(config: Config, role: str, settings: ServerConfig, last: bool) -> Iterator[Finding]:
    from tutelage.models.served.server import Server

    name = f"{role}'s server"
    try:
        can = Server(settings, role).capabilities()
    except TutelageError as error:
        part: Part = "server" if isinstance(error, ServerError) else "environment"
        yield Finding(part, name, "fault", str(error))
        return
    yield Finding("server", name, "ok", f"{settings.address} serves {can.model}")
    if not settings.is_loopback and settings.address.startswith("http:"):
        yield Finding(
            "server",
            f"{name}: plain http",
            "note",
            "prompts, and the key where there is one, cross the network readable",
            "use https, or a tunnel to 127.0.0.1",
        )
    if can.version is None:
        yield Finding("server", f"{name}: vllm", "note", "it does not tell its version")
    else:
        floor, reason = FLOORS["vllm"]
        yield _against_floor("server", f"{name}: vllm", can.version, floor, reason)
    yield Finding("server", f"{name}: context", "ok", f"{can.max_model_len or 'unknown'} tokens")
    yield Finding(
        "server", f"{name}: log-probabilities", "ok", f"{can.max_logprobs} a token at most"
    )
    yield Finding("server", f"{name}: scores given ids", "ok", "yes" if can.token_ids else "no")
    yield Finding("server", f"{name}: weight sync", "ok", "yes" if can.weight_sync else "no")
    if not last:  # what the run asks is asked of all together
        return
    if role == "teacher":
        yield _tried(f"{name}: this objective", lambda: _try_teacher(config))
    else:
        yield _tried(f"{name}: this run", lambda: _try_student(config, can.weight_sync))


def _tried(name: str, attempt: Callable[[], str]) -> Finding:
    try:
        return Finding("server", name, "ok", attempt())
    except TutelageError as error:
        return Finding("server", name, "fault", str(error))


def _try_teacher(config: Config) -> str:
    from tutelage.metrics import overlap_k
    from tutelage.models.served.teacher import load_served_teacher

    teacher = load_served_teacher(config.teacher_model)
    teacher.temperature = config.rollout.temperature
    teacher.prepare_for(config.objective, overlap_k(config.run.metrics_k, teacher.vocabulary))
    question = teacher.question
    if question.complete:
        return f"served exactly, with all {question.listed} log-probabilities a token"
    return f"served, with {question.listed} log-probabilities a token"


def _try_student(config: Config, syncs: bool) -> str:
    from tutelage.models.served.student import weights_folder
    from tutelage.session import model_paths

    weights_folder(config.student, model_paths(config))
    if not syncs:
        raise ServerError(
            "weights cannot be synced: start the server with VLLM_SERVER_DEV_MODE=1 in its "
            "environment, on 127.0.0.1"
        )
    return "weights can be synced"


def memory() -> tuple[int | None, int | None]:
    """Bytes of memory in all and free; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None, None
    sizes = {key: int(rest.split()[0]) * 1024 for key, _, rest in (x.partition(":") for x in lines)}
    return sizes.get("MemTotal"), sizes.get("MemAvailable")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
