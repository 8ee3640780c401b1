"""A student behind a server: it samples there, and learns here.

Before every draw the server has the weights that the trainer has. They go through
files: the trainer overwrites the safetensors of the folder that the server was
started on and asks it to read them anew. A fixed probe proves it each time.
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tutelage.config import ModelConfig
from tutelage.errors import ServerError, UsageError
from tutelage.models.anatomy import quiet_transformers
from tutelage.models.checkpoints import open_folder
from tutelage.models.local import LocalModel
from tutelage.models.served.answers import Floats
from tutelage.models.served.fleet import Fleet, connect
from tutelage.models.served.sampling import sample
from tutelage.models.served.server import Server, probe_sequence
from tutelage.paths import usable_path
from tutelage.types import RenderedPrompt, Rollout, SamplingParams

_DRAWS = 3  # tries at rollouts of one policy before a server that changes under us is an error
# Nats by which the trainer's probe must have moved for the server's to have to move too.
_NOTICEABLE = 1e-5


@dataclass
class ServedStudent:
    """A `Sampler` that draws at a server with the weights of a model in this process."""

    server: Server | Fleet
    """Where it is served."""
    student: LocalModel
    """The model that learns."""
    folder: Path
    """What the server was started on."""
    policy_step: int | None = None
    """Optimizer steps the server's weights have taken; None before the first sync."""
    stale: int = 0
    """Rollouts thrown away because the server's weights had changed while it drew them."""
    syncs: int = 0
    """Weight syncs so far."""

    def __post_init__(self) -> None:
        self.probe = probe_sequence(self.student.vocabulary)
        self.served_logprobs: dict[str, Floats] = {}
        self.own_logprobs: Floats | None = None
        if isinstance(self.server, Fleet):
            self.server.prove = self._bring_up

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        params: SamplingParams,
        *,
        group_size: int = 1,
        seed: int,
        step: int,
        only: Callable[[str, int], bool] = lambda prompt_id, index: True,
    ) -> list[Rollout]:
        """`group_size` rollouts of each prompt, prompt by prompt, at the trainer's weights.

        Raises:
            ServerError: no good answer, or a server that does not keep the weights it got.
        """
        for _ in range(_DRAWS):
            if self.policy_step != self.student.policy_step:
                self.sync()
            assert self.policy_step is not None
            began_with = self.server.up()
            rollouts = sample(
                self.server,
                prompts,
                params,
                group_size=group_size,
                seed=seed,
                step=step,
                only=only,
                stops=self.student.stop_ids,
                vocabulary=self.student.vocabulary,
                decode=self.student.decode_text,
                policy_step=self.policy_step,
            )
            # What a server drew that has left cannot be proved any more.
            if self.is_in_step() and began_with <= self.server.up():
                return rollouts
            self.stale += len(rollouts)
            self.policy_step = None
        raise ServerError(
            f"the student's server {self.server.settings.address} changed its weights {_DRAWS} "
            "times while it sampled: another program loads weights into it, or restarts it. Give "
            "this run a server of its own"
        )

    def sync(self) -> None:
        """Give the server the trainer's weights, and prove that it has them.

        Raises:
            ServerError: the server's log-probabilities are not the trainer's, or did not move.
            UsageError: a folder with other weights, or a server that cannot be synced.
        """
        own = probe_logprobs(self.student, self.probe)
        write_weights(self.student, self.folder)
        moved = 0.0 if self.own_logprobs is None else float(np.abs(own - self.own_logprobs).max())
        self.own_logprobs = own
        self.server.each(partial(self._bring_up, moved=moved), returning=True)
        self.policy_step = self.student.policy_step
        self.syncs += 1

    def _bring_up(self, server: Server, moved: float = 0.0) -> None:
        """Let a server read the weights in the folder, and prove that it has them."""
        assert self.own_logprobs is not None
        server.reload_weights()
        served = server.score([self.probe], 0)[0].sampled
        distance = float(np.abs(served - self.own_logprobs).max())
        where = f"the student's server {server.settings.address}"
        if not distance <= server.settings.tolerance:
            raise ServerError(
                f"{where} does not have the trainer's weights after a sync: on a fixed probe they "
                f"differ by {distance:.3g} nats, and student.server.tolerance allows "
                f"{server.settings.tolerance:g}. Start it on the folder {self.folder} with "
                "--dtype float32; a bfloat16 server needs a tolerance of about .05"
            )
        before = self.served_logprobs.get(server.settings.address)
        if before is not None and moved > _NOTICEABLE and np.array_equal(served, before):
            raise ServerError(
                f"{where} did not take the new weights: the trainer's log-probabilities of a "
                f"fixed probe moved by {moved:.3g} nats and the server's not at all. Start it "
                f"on the folder {self.folder}"
            )
        self.served_logprobs[server.settings.address] = served

    def is_in_step(self) -> bool:
        """Whether the servers still have the weights of the last sync."""

        def same(server: Server) -> bool:
            kept = self.served_logprobs.get(server.settings.address)
            if kept is None:
                return False
            now = server.score([self.probe], 0)[0].sampled
            return float(np.abs(now - kept).max()) <= server.settings.tolerance

        return bool(self.served_logprobs) and all(self.server.each(same))

    def record(self) -> dict[str, int]:
        """Counts for the record of a step, since the last call."""
        told = {"server/stale_rollouts": self.stale, "server/syncs": self.syncs}
        self.stale = self.syncs = 0
        return told


def serve_student(
    settings: ModelConfig, student: LocalModel, protected: Mapping[str, str]
) -> ServedStudent:
    """The student's server, ready to be synced.

    Raises:
        UsageError: no weights folder, one that must not be overwritten, a server that is not on
            this machine.
        ServerError: a server that does not answer.
    """
    folder = weights_folder(settings, protected)
    assert settings.server is not None
    return ServedStudent(connect(settings.server, "student"), student, folder)


def weights_folder(settings: ModelConfig, protected: Mapping[str, str]) -> Path:
    """The folder that the student's server was started on.

    Args:
        settings: the student's.
        protected: paths of the run's models by setting, which must stay as they are.

    Raises:
        UsageError: none is named, it must not be overwritten, or the server is not on this machine.
    """
    server_settings = settings.server
    assert server_settings is not None
    if server_settings.weights is None:
        raise UsageError(
            "student.server.weights is missing: the student's server samples with the trainer's "
            "weights, which go through the folder it was started on. Copy student.path, start the "
            "server on the copy, and name the copy here"
        )
    if not server_settings.is_loopback and not server_settings.allow_remote_sync:
        raise UsageError(
            f"student.server.url {server_settings.address} is not on this machine, and weights are "
            "synced through developer endpoints that are open to whoever reaches them; use a "
            "server on 127.0.0.1, or set student.server.allow_remote_sync: true"
        )
    folder = open_folder(server_settings.weights, "student.server.weights")
    for setting, path in protected.items():
        if folder.path.resolve() == usable_path(path, setting).resolve():
            raise UsageError(
                f"student.server.weights is {setting} ({path}), and every step overwrites the "
                "weights there; start the server on a copy of student.path"
            )
    return folder.path


@torch.no_grad()
def probe_logprobs(student: LocalModel, sequence: Sequence[int]) -> Floats:
    """The model's own log-probabilities of a sequence after its first token, at temperature 1."""
    ids = torch.tensor([list(sequence)], device=student.device)
    logits: Tensor = student.model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    chosen = logits.log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return chosen.double().cpu().numpy()


def write_weights(student: LocalModel, folder: Path) -> None:
    """Overwrite the safetensors in `folder` with the model's weights, file by file.

    Names, dtypes and the division into files stay as they are there; each file is replaced as a
    whole, so nobody reads half of one.

    Raises:
        UsageError: the files hold a weight that the model has not, or of another shape.
    """
    files = sorted(folder.glob("model*.safetensors"))
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tutelage-") as scratch:
        with quiet_transformers():
            student.model.save_pretrained(scratch, state_dict=student.merged_weights())
        own: dict[str, Tensor] = {}
        for file in Path(scratch).glob("*.safetensors"):
            own |= load_file(file)
        for file in files:
            target = Path(scratch) / f"new-{file.name}"
            save_file(_like(file, own), target, metadata={"format": "pt"})
            target.chmod(file.stat().st_mode)
            os.replace(target, file)


def _like(file: Path, own: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's tensors of the names, shapes and dtypes that a file has."""
    tensors: dict[str, Tensor] = {}
    with safe_open(file, framework="pt") as stored:
        names: Any = stored.keys()
        for name in names:
            part = stored.get_slice(name)
            mine = own.get(name)
            if mine is None or list(mine.shape) != part.get_shape():
                found = "nothing" if mine is None else list(mine.shape)
                raise UsageError(
                    f"student.server.weights: {file} holds {name} {part.get_shape()}, and the "
                    f"student has {found} there; start the server on a copy of student.path"
                )
            tensors[name] = mine.to(stored.get_tensor(name).dtype).contiguous()
    return tensors
