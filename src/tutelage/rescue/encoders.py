"""Sentence embeddings that are on this machine already, and their nearest neighbours."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tutelage.errors import MachineError, UsageError, first_line
from tutelage.paths import usable_path

Vectors = npt.NDArray[np.float32]
Encoder = Callable[[Sequence[str]], Vectors]
_OFFLINE = "or take --near minhash, which needs no encoder"
_BLOCK = 16_384


def load_encoder(name: str) -> Encoder:
    """Texts to unit vectors [n, d], by sentence-transformers or model2vec.

    Nothing is downloaded, and no pickle is read.

    Raises:
        MachineError: the encoder is not on this machine, or its package is not installed.
        UsageError: a folder that holds no encoder.
    """
    folder = _folder(name)
    if not (folder / "modules.json").is_file() and (folder / "config.json").is_file():
        _need("model2vec", name)
        from model2vec import StaticModel

        static = _loaded(name, lambda: StaticModel.from_pretrained(str(folder)))
        return lambda texts: _unit(static.encode(list(texts)))
    _need("sentence_transformers", name)
    from sentence_transformers import SentenceTransformer

    model = _loaded(
        name,
        lambda: SentenceTransformer(
            str(folder),
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        ),
    )
    return lambda texts: _unit(
        model.encode(list(texts), batch_size=64, convert_to_numpy=True, show_progress_bar=False)
    )


class Neighbours:
    """Unit vectors and the nearest of them to others, by exact products; more may join."""

    def __init__(self) -> None:
        self._blocks: list[Vectors] = []
        self._recent: list[Vectors] = []
        self._asked: Vectors = np.empty((0, 0), np.float32)
        self._best: list[tuple[float, int]] = []
        self._settled = 0

    def add(self, vector: Vectors) -> None:
        """One more vector; its place is how many came before."""
        self._recent.append(vector)

    def ask(self, vectors: Vectors) -> None:
        """Compare vectors [n, d] with all that are there, at once."""
        self._settle()
        self._asked = vectors
        best = np.full(len(vectors), -np.inf, np.float32)
        places = np.zeros(len(vectors), np.int64)
        start = 0
        for block in self._blocks:
            products = vectors @ block.T
            here = products.argmax(1)
            values = products[np.arange(len(vectors)), here]
            better = values > best
            best[better], places[better] = values[better], start + here[better]
            start += len(block)
        self._best = list(zip(best.tolist(), places.tolist(), strict=True))

    def nearest(self, i: int) -> tuple[float, int]:
        """Cosine and place of the nearest to the asked vector i, those added since included."""
        best = self._best[i]
        if self._recent:
            products = np.stack(self._recent) @ self._asked[i]
            place = int(products.argmax())
            best = max(best, (float(products[place]), self._settled + place))
        return best

    def _settle(self) -> None:
        if not self._recent:
            return
        new = np.stack(self._recent)
        if self._blocks and len(self._blocks[-1]) + len(new) <= _BLOCK:
            self._blocks[-1] = np.concatenate([self._blocks[-1], new])
        else:
            self._blocks.append(new)
        self._settled += len(new)
        self._recent.clear()


def _folder(name: str) -> Path:
    path = usable_path(name, "encoder")
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, local_files_only=True)  # nosec B615 # local
    except (LocalEntryNotFoundError, HFValidationError, OSError):
        raise MachineError(
            f"the encoder {name} is not on this machine and nothing is downloaded here; fetch it "
            f"with `hf download {name}` where there is a network, give the folder of another one "
            f"with --encoder, {_OFFLINE}"
        ) from None
    return Path(found)


def _need(package: str, name: str) -> None:
    if find_spec(package) is None:
        raise MachineError(
            f"the encoder {name} needs the package {package.replace('_', '-')}; "
            f"pip install 'tutelage[semantic]', {_OFFLINE}"
        )


def _loaded(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except Exception as error:  # damaged folders surface in every way
        raise UsageError(
            f"the encoder {name} cannot be loaded ({first_line(error)}); "
            f"give the folder of a sentence-transformers or model2vec model, {_OFFLINE}"
        ) from None


def _unit(vectors: Any) -> Vectors:
    array = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(array, axis=1, keepdims=True)
    return np.asarray(array / np.maximum(lengths, 1e-12), np.float32)
