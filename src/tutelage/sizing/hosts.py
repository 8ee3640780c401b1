"""A run on many devices: what each holds, who does what, how long a step takes, how it starts."""

import math
from collections.abc import Mapping

from tutelage.config import Config, TopK, parse_config
from tutelage.errors import MachineError, UsageError
from tutelage.models.checkpoints import open_folder
from tutelage.planning import CHUNK_ELEMENTS, CHUNK_ELEMENTS_ELSEWHERE, plan
from tutelage.sizing.cost import (
    Layout,
    Link,
    Speeds,
    Workload,
    pass_tokens,
    step_cost,
)
from tutelage.sizing.datasheets import speeds_on
from tutelage.sizing.host_plan import GB, HostPlan, counted
from tutelage.sizing.lengths import Lengths, always, geometric
from tutelage.sizing.memory import USABLE, DeviceMemory, Kind, device_memory
from tutelage.sizing.profiles import Hardware, Measured
from tutelage.sizing.scripts import Launch, ray_cluster, ray_job, sbatch
from tutelage.sizing.shapes import Shape, shape_of


def plan_hosts(
    config: Config,
    *,
    hosts: int,
    devices_per_host: int | None = None,
    device_memory_gb: float | None = None,
    profile: Hardware | Measured | None = None,
    teacher_hosts: int | None = None,
    mean_tokens: float | None = None,
    prompt_tokens: float | None = None,
    config_path: str = "run.yaml",
) -> HostPlan:
    """Size a run on `hosts` hosts, and write how to start it; nothing is started.

    Args:
        config: the run.
        hosts: all of them, those of teacher servers included.
        devices_per_host: accelerators of each; the profile's, or 1.
        device_memory_gb: memory of each, 10^9 bytes; the profile's.
        profile: what is known of the device; without one no seconds are told.
        teacher_hosts: hosts that serve the teacher, where `teacher.server` is set; 1.
        mean_tokens: mean tokens of a completion; without it each takes all it may, or what the
            profile measured.
        prompt_tokens: mean tokens of a prompt; without it data.max_prompt_tokens.
        config_path: how the scripts name the file of settings.

    Raises:
        UsageError: a step that cannot be dealt, settings that several ranks refuse.
        MachineError: the student or the teacher does not fit.
    """
    devices, limit = _devices(profile, devices_per_host, device_memory_gb)
    served = config.teacher_model.server is not None
    serving_hosts = _serving_hosts(hosts, teacher_hosts, served)
    ranks = (hosts - serving_hosts) * devices
    student, teacher = _shapes(config)
    _require_dealt(config, ranks, devices, serving_hosts)
    config, memory = _fitting(config, student, ranks, limit, teacher_here=not served)
    kind = config.distributed.type
    tensor_parallel, serving = _serving(teacher, limit, devices) if served else (1, 0)
    lengths = _lengths(config, profile, mean_tokens)
    prompt = prompt_tokens or _prompt_tokens(config, profile)
    device = profile.device if isinstance(profile, Measured) else "cuda"
    work = workload(config, prompt, lengths, device)
    cost = None
    if profile is not None:
        link, serving_devices = _link(profile, ranks, devices), serving_hosts * devices
        layout = Layout(ranks=ranks, kind=kind, link=link, teacher_devices=serving_devices)
        cost = step_cost(work, _speeds(profile, config, student, teacher), layout)
    launch = Launch(
        hosts=hosts,
        devices=devices,
        gpus=isinstance(profile, Hardware) or config.student.device != "cpu",
        teacher_hosts=serving_hosts,
        teacher_devices=tensor_parallel,
        kind=kind,
        config=config_path,
        teacher=config.teacher_model.path,
        listed=work.listed,
        run_dir=config.run.dir,
    )
    return HostPlan(
        hosts=hosts,
        devices_per_host=devices,
        teacher_hosts=serving_hosts,
        teacher_devices=tensor_parallel,
        ranks=ranks,
        kind=kind,
        device_bytes=limit,
        memory=memory,
        serving=serving,
        cost=cost,
        projected=isinstance(profile, Hardware) or ranks > 1,
        basis=_basis(profile, lengths, prompt, config),
        sbatch=sbatch(launch),
        ray_cluster=ray_cluster(launch),
        ray_job=ray_job(launch),
    )


def workload(
    config: Config, prompt_tokens: float, lengths: Lengths, device: str = "cuda"
) -> Workload:
    """One step of a run on that type of device, as the cost model takes it."""
    sizes = plan(config)
    rollout = config.rollout
    folder = open_folder(config.student.path, "student", config.student.revision)
    elements = CHUNK_ELEMENTS.get(device, CHUNK_ELEMENTS_ELSEWHERE)
    listed = 0
    if config.teacher_model.server is not None:
        most = config.objective.k if isinstance(config.objective, TopK) else 0
        listed = max(most, config.run.metrics_k + 1)
    return Workload(
        prompts=rollout.prompts_per_step,
        group_size=rollout.group_size,
        prompt_tokens=prompt_tokens,
        lengths=lengths,
        decode_batch=rollout.batch_size,
        together=rollout.steps_per_generation,
        micro_batch=config.optimizer.micro_batch_size,
        chunk=max(16, elements // max(1, folder.vocabulary)),
        pass_tokens=pass_tokens(sizes.student_parameters, sizes.teacher_parameters, device),
        shares=not config.student.gradient_checkpointing,
        student_bytes=sizes.student_bytes,
        trained=sizes.trained_parameters,
        references=int(sizes.reference_parameters > 0),
        listed=listed,
    )


def _devices(
    profile: Hardware | Measured | None, per_host: int | None, memory_gb: float | None
) -> tuple[int, int]:
    """Devices of a host, and bytes of one: as given, else as the profile has them."""
    known = profile if isinstance(profile, Hardware) else None
    memory_gb = memory_gb or (known.memory_gb if known else None)
    if memory_gb is None:
        raise UsageError(
            "the memory of a device is not known; give --device-memory-gb, or a --profile that "
            "tells it"
        )
    return per_host or (known.devices_per_host if known else 1), int(memory_gb * GB)


def _shapes(config: Config) -> tuple[Shape, Shape]:
    """Of student and teacher; of a served teacher the weights need not be here."""
    own, theirs = config.student, config.teacher_model
    return (
        shape_of(open_folder(own.path, "student", own.revision)),
        shape_of(
            open_folder(theirs.path, "teacher", theirs.revision, weights=theirs.server is None)
        ),
    )


def _serving_hosts(hosts: int, wanted: int | None, served: bool) -> int:
    if hosts < 1:
        raise UsageError(f"--hosts {hosts}: at least one host is needed")
    if not served:
        if wanted:
            raise UsageError(
                f"--teacher-hosts {wanted}: the teacher is in process, on every rank; set "
                "teacher.server to have it on hosts of its own"
            )
        return 0
    serving = 1 if wanted is None else wanted
    if not 0 < serving < hosts:
        raise UsageError(
            f"teacher.server has the teacher on hosts of its own, and of {counted(hosts, 'host')} "
            f"{serving} would serve it; one at least must serve, and one train: use --hosts "
            f"{serving + 1} or more, or leave teacher.server out"
        )
    return serving


def _require_dealt(config: Config, ranks: int, devices: int, serving: int) -> None:
    prompts = config.rollout.prompts_per_step
    if prompts % ranks == 0:
        return
    above = math.ceil(prompts / ranks) * ranks
    below = above - ranks
    fitting = [h + serving for h in range(1, prompts + 1) if prompts % (h * devices) == 0]
    hosts = f"--hosts {', '.join(map(str, fitting[:8]))} would do" if fitting else ""
    raise UsageError(
        f"rollout.prompts_per_step {prompts} cannot be dealt to {ranks} ranks alike; set it to "
        f"{f'{below} or ' if below else ''}{above}{'; ' + hosts if hosts else ''}"
    )


def _fitting(
    config: Config, student: Shape, ranks: int, limit: int, *, teacher_here: bool
) -> tuple[Config, DeviceMemory]:
    """The settings with the way of holding the student that fits, and what a device then holds."""
    asked = config.distributed.type
    kinds: list[Kind]
    if ranks == 1:
        kinds = ["none"]
    elif asked == "none":
        kinds = ["ddp", "fsdp2"]
    else:
        kinds = [asked]
    tried: dict[Kind, DeviceMemory] = {}
    refused = ""
    for kind in kinds:
        try:
            tree = config.model_dump(mode="json")
            set_up = config if kind == asked else parse_config({**tree, "distributed": kind})
        except UsageError as error:
            if not tried:
                raise
            refused = f" ({error})"
            continue
        memory = device_memory(set_up, student, kind=kind, ranks=ranks, teacher_here=teacher_here)
        if memory.most <= USABLE * limit:
            return set_up, memory
        tried[kind] = memory
    raise MachineError(_too_large(config, tried, limit, teacher_here) + refused)


def _too_large(
    config: Config, tried: Mapping[Kind, DeviceMemory], limit: int, teacher_here: bool
) -> str:
    kind, memory = min(tried.items(), key=lambda item: item[1].most)
    parts = {
        name: size
        for name, size in memory.to_dict().items()
        if name not in ("sampling", "updating") and size
    }
    largest = sorted(parts, key=lambda name: -parts[name])
    cures = {
        "activations": "lower optimizer.micro_batch_size, or set student.gradient_checkpointing",
        "cache": "lower rollout.batch_size",
        "teacher": "set teacher.server, or teacher.dtype bfloat16",
        "optimizer": "train LoRA (student.lora), or use more hosts with distributed fsdp2",
        "gradients": "train LoRA (student.lora), or use more hosts with distributed fsdp2",
        "whole": "use devices with more memory: fsdp2 gathers all of the student to sample",
        "student": "set distributed fsdp2, and use more hosts",
        "references": "do without the objective's further model",
    }
    advice = list(dict.fromkeys(cures[name] for name in largest if name in cures))[:3]
    told = ", ".join(f"{name} {parts[name] / GB:.1f}" for name in largest[:5])
    return (
        f"the run does not fit: with {kind} a device would hold {memory.most / GB:.1f} GB "
        f"({told}), and of {limit / GB:g} GB {USABLE:.0%} can be used; {'; or '.join(advice)}"
    )


def _serving(teacher: Shape, limit: int, devices: int) -> tuple[int, int]:
    """Devices of one teacher server, and bytes of its weights on each."""
    size = 2 * teacher.parameters
    for count in (n for n in range(1, devices + 1) if devices % n == 0):
        if size / count <= 0.8 * limit:  # the rest is the server's cache
            return count, size // count
    raise MachineError(
        f"the teacher's weights take {size / GB:.0f} GB in bfloat16, and the "
        f"{counted(devices, 'device')} of a host hold {devices * limit / GB:.0f} GB; use "
        "hosts with more devices, or a smaller teacher"
    )


def _speeds(profile: Hardware | Measured, config: Config, student: Shape, teacher: Shape) -> Speeds:
    if isinstance(profile, Hardware):
        precision = config.optimizer.precision
        kind = precision if config.student.dtype == "float32" else config.student.dtype
        dtype = config.teacher_model.dtype
        return speeds_on(profile, student, teacher, kind, dtype)
    measured = (profile.student, profile.teacher)
    if measured != (config.student.path, config.teacher_model.path):
        raise UsageError(
            f"the profile was measured with {' and '.join(measured)}, and the run has "
            f"{config.student.path} and {config.teacher_model.path}; measure one with --measure"
        )
    return profile.speeds


def _link(profile: Hardware | Measured, ranks: int, devices: int) -> Link | None:
    if ranks == 1:
        return None
    if isinstance(profile, Hardware):
        between = profile.within_host if ranks <= devices else profile.between_hosts
        return between.link(profile.message_bytes_per_s)
    if profile.link is None:
        raise UsageError(
            f"{ranks} ranks talk to each other, and the profile knows no link: measure it by "
            "ranks (torchrun --nproc-per-node 2 -m tutelage plan ... --measure FILE), or give a "
            "profile of hardware"
        )
    return profile.link


def _lengths(
    config: Config, profile: Hardware | Measured | None, mean_tokens: float | None
) -> Lengths:
    limit = config.rollout.max_new_tokens
    if mean_tokens is not None:
        try:
            return geometric(mean_tokens, limit)
        except ValueError as error:
            raise UsageError(f"--mean-tokens: {error} (rollout.max_new_tokens)") from None
    if isinstance(profile, Measured):
        return profile.lengths.cut(limit)
    return always(limit)


def _prompt_tokens(config: Config, profile: Hardware | Measured | None) -> float:
    if isinstance(profile, Measured):
        return profile.prompt_tokens
    return float(config.data.max_prompt_tokens)


def _basis(
    profile: Hardware | Measured | None, lengths: Lengths, prompt: float, config: Config
) -> str:
    if profile is None:
        return ""
    bound = lengths.mean == config.rollout.max_new_tokens
    return (
        f"{profile.name}; prompts of {prompt:.0f} tokens, completions of {lengths.mean:.0f}"
        f"{', the most they may have' if bound else ''}"
    )
