"""tutelage plan"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tutelage.cli.arguments import parse_with_settings, print_json, put

if TYPE_CHECKING:
    from tutelage.config import Config
    from tutelage.sizing.profiles import Hardware, Measured


def run(words: Sequence[str]) -> None:
    """Read the arguments and call the verb."""
    parse_with_settings(plan, words)


def plan(
    *,
    config: Annotated[Path | None, tyro.conf.arg(aliases=["-c"])] = None,
    hosts: int | None = None,
    devices_per_host: int | None = None,
    device_memory_gb: float | None = None,
    profile: str | None = None,
    measure: Path | None = None,
    teacher_hosts: int | None = None,
    mean_tokens: float | None = None,
    prompt_tokens: float | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
) -> Callable[[list[str]], None]:
    """Show the resolved settings, memory and tokens of a run without loading weights.

    With --hosts: what each device holds, who does what, how long a step takes and what
    limits it, and scripts for SLURM and Ray, printed and never submitted.

    Args:
        config: YAML file with the settings; --section.key value changes them.
        hosts: size the run for that many hosts.
        devices_per_host: accelerators of each; the profile's, else 1.
        device_memory_gb: memory of each, 10^9 bytes; the profile's.
        profile: h100, or a file: hardware as docs/scaling.md says, or what --measure kept.
        measure: time this machine with the run's models for some seconds (loads both), and keep
            the profile in this file.
        teacher_hosts: hosts that serve the teacher, where teacher.server is set; 1.
        mean_tokens: mean tokens of a completion; without it the most, or as measured.
        prompt_tokens: mean tokens of a prompt; without it the most, or as measured.
        as_json: print one JSON object on stdout.
    """

    def call(rest: list[str]) -> None:
        from tutelage.config import dump_config, load_config
        from tutelage.errors import UsageError
        from tutelage.planning import plan as run_plan

        settings = load_config(config, rest)
        result = run_plan(settings)
        sized = (devices_per_host, device_memory_gb, profile, teacher_hosts, mean_tokens)
        if hosts is None and any(word is not None for word in (*sized, prompt_tokens, measure)):
            raise UsageError("--hosts is missing; the other flags of size are of a run on hosts")
        told = settings.model_dump(mode="json")
        if hosts is None:
            if as_json:
                print_json({"config": told, **result.to_dict()})
            else:
                put(dump_config(settings))
                put(result.table())
            return

        from tutelage.sizing.hosts import plan_hosts

        known = _device(settings, profile, measure)
        if known is None and measure is not None:
            return  # the first rank tells
        found = plan_hosts(
            settings,
            hosts=hosts,
            devices_per_host=devices_per_host,
            device_memory_gb=device_memory_gb,
            profile=known,
            teacher_hosts=teacher_hosts,
            mean_tokens=mean_tokens,
            prompt_tokens=prompt_tokens,
            config_path="run.yaml" if config is None else str(config),
        )
        if as_json:
            print_json({"config": told, **result.to_dict(), "hosts": found.to_dict()})
            return
        put(found.table())
        for title, text in (
            ("sbatch", found.sbatch),
            ("ray up", found.ray_cluster),
            ("ray job", found.ray_job),
        ):
            put(f"\n---- {title} ----\n{text}")

    return call


def _device(
    settings: "Config", profile: str | None, measure: Path | None
) -> "Hardware | Measured | None":
    """What is known of a device; None also of ranks that only helped the first to measure."""
    from tutelage.errors import UsageError
    from tutelage.sizing.profiles import read_profile, write_profile

    if measure is None:
        return None if profile is None else read_profile(profile)
    from tutelage.sizing.measuring import measure_as_placed

    if profile is not None:
        raise UsageError("--profile and --measure both tell of the device; give one")
    known, first = measure_as_placed(settings)
    if not first:
        return None
    write_profile(known, measure)
    return known
