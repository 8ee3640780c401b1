"""How a planned run is started: text for SLURM and for Ray, printed and never submitted."""

import shlex
from dataclasses import dataclass
from string import Template

import yaml

from tutelage.sizing.memory import Kind

_SAVE_S = 300  # SLURM asks so long before it ends a job
_SHUTDOWN_S = 120  # torchrun waits so long for ranks that save
_FIRST_PORT = 8000


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the scripts must know."""

    hosts: int
    devices: int
    """Of each host."""
    gpus: bool
    """Whether devices are accelerators."""
    teacher_hosts: int
    teacher_devices: int
    """Of one server."""
    kind: Kind
    config: str
    """The file of settings, as the script names it."""
    teacher: str
    listed: int
    """Log-probabilities that a teacher server must give."""
    run_dir: str

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return (self.hosts - self.teacher_hosts) * self.devices


_SBATCH = Template("""\
#!/bin/bash
#SBATCH --job-name=tutelage
#SBATCH --nodes=$hosts
#SBATCH --ntasks-per-node=1
$gpus#SBATCH --time=24:00:00
#SBATCH --signal=TERM@$save_s
#SBATCH --requeue
#SBATCH --open-mode=append
# $save_s s before its time is over, or when the job must make room, SLURM asks the job's steps to
# end. Ranks then save and end with 75, and the job is queued again; after any other end it is not.
set -uo pipefail

config=$config
run=$run
nodes=($$(scontrol show hostnames "$$SLURM_JOB_NODELIST"))
$servers
events=0
[ -f "$$run/events.jsonl" ] && events=$$(wc -l < "$$run/events.jsonl")

$train
code=$$?
$stop
# torchrun ends with 1 whatever its ranks' codes are, so the run's own last event says which.
if [ "$$code" -ne 0 ] && [ -f "$$run/events.jsonl" ]; then
  tail -n "+$$((events + 1))" "$$run/events.jsonl" | grep '"event": "stopped"' | tail -n 1 \\
    | grep -q '"exit": 75' && code=75
fi
[ "$$code" -eq 75 ] && scontrol requeue "$$SLURM_JOB_ID"
exit "$$code"
""")

_TORCHRUN = Template("""\
srun --nodes=$hosts --ntasks=$hosts --nodelist="$$(IFS=,; echo "$${training[*]}")" \\
  torchrun --nnodes $hosts --nproc-per-node $devices --rdzv-backend c10d \\
  --rdzv-endpoint "$${training[0]}:$$((29400 + SLURM_JOB_ID % 1000))" --rdzv-id "$$SLURM_JOB_ID" \\
  --rdzv-conf join_timeout=300 --shutdown-timeout $shutdown_s \\
  -m tutelage train -c "$$config" --distributed $kind --resume$urls""")

_SERVERS = Template("""\
serving=("$${nodes[@]:0:$teacher_hosts}")
training=("$${nodes[@]:$teacher_hosts}")

# Teacher servers, open to whoever reaches these hosts: see docs/servers.md.
urls=()
for node in "$${serving[@]}"; do
  for place in $places; do
    first=$$((place * $teacher_devices))
    srun --nodes=1 --ntasks=1 --overlap --nodelist="$$node" \\
      env CUDA_VISIBLE_DEVICES="$$(seq -s, "$$first" $$((first + $teacher_devices - 1)))" \\
      vllm serve $teacher --host 0.0.0.0 --port $$(($first_port + place)) \\
      --tensor-parallel-size $teacher_devices --max-logprobs $listed &
    urls+=("\\"http://$$node:$$(($first_port + place))\\"")
  done
done
for url in "$${urls[@]}"; do
  for attempt in $$(seq 180); do
    curl --silent --fail --max-time 5 "$${url//\\"/}/health" > /dev/null && continue 2
    sleep 5
  done
  echo "the teacher's server $$url did not start within 15 minutes" >&2
  exit 6
done""")


def sbatch(launch: Launch) -> str:
    """A batch script for SLURM that goes on after a requeue."""
    names = {
        "hosts": launch.hosts - launch.teacher_hosts,
        "devices": launch.devices,
        "kind": launch.kind,
        "shutdown_s": _SHUTDOWN_S,
        "teacher_hosts": launch.teacher_hosts,
        "teacher_devices": launch.teacher_devices,
        "places": " ".join(map(str, range(launch.devices // launch.teacher_devices))),
        "teacher": shlex.quote(launch.teacher),
        "listed": launch.listed,
        "first_port": _FIRST_PORT,
        "urls": "",
    }
    servers = 'training=("${nodes[@]}")'
    if launch.teacher_hosts:
        servers = _SERVERS.substitute(names)
        names["urls"] = ' \\\n  --teacher.server.url "[$(IFS=,; echo "${urls[*]}")]"'
    train = _TORCHRUN.substitute(names)
    if launch.ranks == 1:
        train = f'srun --nodes=1 --ntasks=1 tutelage train -c "$config" --resume{names["urls"]}'
    return _SBATCH.substitute(
        hosts=launch.hosts,
        gpus=f"#SBATCH --gpus-per-node={launch.devices}\n" if launch.gpus else "",
        save_s=_SAVE_S,
        config=shlex.quote(launch.config),
        run=shlex.quote(launch.run_dir),
        servers=servers,
        train=train,
        stop="kill $(jobs -p) 2> /dev/null" if launch.teacher_hosts else "",
    )


def ray_cluster(launch: Launch) -> str:
    """The YAML that `ray up` takes, for hosts of one's own; addresses are to be filled in."""
    workers = launch.hosts - 1
    resources = f"--num-gpus={launch.devices}" if launch.gpus else f"--num-cpus={launch.devices}"
    tree = {
        "cluster_name": "tutelage",
        "provider": {
            "type": "local",
            "head_ip": "HEAD_ADDRESS",
            "worker_ips": [f"WORKER_{i + 1}_ADDRESS" for i in range(workers)],
        },
        "auth": {"ssh_user": "USER"},
        "min_workers": workers,
        "max_workers": workers,
        "setup_commands": ["pip install 'tutelage[ray]'"],
        "head_start_ray_commands": [
            "ray stop",
            f"RAY_AUTH_MODE=token ray start --head --port=6379 {resources} "
            "--dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379 {resources}",
        ],
    }
    head = (
        "# ray up cluster.yaml. Whoever reaches a cluster of Ray runs code on it: its ports must\n"
        "# be closed to everybody else, and its hosts share one token (docs/scaling.md).\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False, width=100)


def ray_job(launch: Launch) -> str:
    """What `ray job submit` is given, as the fields of its API."""
    kind = "" if launch.ranks == 1 else f" --distributed {launch.kind}"
    entry = (
        f"tutelage train -c {shlex.quote(launch.config)} --resume{kind} --engine ray "
        f"--engine.address auto --engine.workers {launch.ranks}"
        f"{' --engine.student.gpus 1' if launch.gpus else ''}"
    )
    tree = {
        "entrypoint": entry,
        "submission_id": "tutelage-train",
        "runtime_env": {"working_dir": "."},
        "metadata": {"started_by": "tutelage plan"},
    }
    head = (
        "# ray job submit --working-dir . -- ENTRYPOINT, on the head; check and align go alike.\n"
    )
    return head + yaml.safe_dump(tree, sort_keys=False, width=1000)
