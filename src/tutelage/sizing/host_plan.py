"""A run on many devices, as it is planned and as a reader is told of it."""

from dataclasses import dataclass
from typing import Any

from tutelage.sizing.cost import StepCost
from tutelage.sizing.memory import DeviceMemory, Kind

GB = 10**9


@dataclass(frozen=True, kw_only=True)
class HostPlan:
    """A run on hosts, before anything is started."""

    hosts: int
    """All of them."""
    devices_per_host: int
    """Accelerators of each."""
    teacher_hosts: int
    """Hosts whose devices serve the teacher; 0 has it on every rank."""
    teacher_devices: int
    """Devices of one teacher server."""
    ranks: int
    """Processes that train, a device each."""
    kind: Kind
    """How the student is held."""
    device_bytes: int
    """Memory of a device."""
    memory: DeviceMemory
    """Of a device that trains."""
    serving: int
    """Bytes of the teacher's weights on a device that serves it; 0 where none does."""
    cost: StepCost | None
    """Of a step; None without a profile."""
    projected: bool
    """Whether the cost is a projection: nothing like it was run."""
    basis: str
    """What the cost rests on."""
    sbatch: str
    """A script for SLURM."""
    ray_cluster: str
    """A file for `ray up`."""
    ray_job: str
    """What to submit to that cluster."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        told: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("hosts", "devices_per_host", "teacher_hosts", "teacher_devices", "ranks")
        }
        told |= {
            "distributed": self.kind,
            "device_bytes": self.device_bytes,
            "memory": self.memory.to_dict(),
            "serving_bytes": self.serving,
        }
        if self.cost is not None:
            told |= {
                "projection": self.projected,
                "basis": self.basis,
                "step_s": self.cost.step_s,
                "tokens_per_s": self.cost.tokens_per_s,
                "limit": self.cost.limit,
                "phase_s": dict(self.cost.seconds),
            }
        names = ("sbatch", "ray_cluster", "ray_job")
        return {**told, **{name: getattr(self, name) for name in names}}

    def table(self) -> str:
        """The plan for a reader."""
        return "\n".join([*self._roles(), "", *self._memory(), "", *self._cost()])

    def _roles(self) -> list[str]:
        training = self.hosts - self.teacher_hosts
        held = {
            "none": "one process",
            "ddp": "ddp: every rank holds the student",
            "fsdp2": "fsdp2: every rank holds its part of the student",
        }
        lines = [
            f"student   {counted(training, 'host')} x {self.devices_per_host} devices, "
            f"{counted(self.ranks, 'rank')} that sample and train, {held[self.kind]}"
        ]
        if self.teacher_hosts:
            servers = self.teacher_hosts * (self.devices_per_host // self.teacher_devices)
            lines.append(
                f"teacher   {counted(self.teacher_hosts, 'host')}, "
                f"{counted(servers, 'server')} of {counted(self.teacher_devices, 'device')}, "
                f"{self.serving / GB:.1f} GB of weights on each device"
            )
        else:
            lines.append("teacher   whole on every rank")
        return lines

    def _memory(self) -> list[str]:
        memory = self.memory
        rows = {
            key.replace("_", " "): value
            for key, value in memory.to_dict().items()
            if value and key not in ("sampling", "updating")
        }
        lines = [f"{'a device holds':16} {'GB':>9}"]
        lines += [f"  {name:14} {value / GB:9.3f}" for name, value in rows.items()]
        lines += [
            f"most, sampling   {memory.sampling / GB:9.3f}",
            f"most, updating   {memory.updating / GB:9.3f}  of {self.device_bytes / GB:g}",
        ]
        return lines

    def _cost(self) -> list[str]:
        if self.cost is None:
            return [
                "seconds: unknown; --profile NAME or FILE, or --measure FILE, lets them be told"
            ]
        label = "PROJECTION, nothing like it was run" if self.projected else "estimate"
        total = self.cost.step_s
        lines = [f"a step ({label}; {self.basis})"]
        lines += [
            f"  {phase:12} {seconds:10.4f} s  {100 * seconds / total:3.0f} %"
            for phase, seconds in self.cost.seconds.items()
        ]
        lines.append(
            f"  {'in all':12} {total:10.4f} s, {self.cost.tokens_per_s:,.0f} completion tokens a "
            f"second; {self.cost.limit} takes most"
        )
        return lines


def counted(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
