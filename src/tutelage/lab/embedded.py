"""The embedded pair: a weak student and its teachers, shipped with the package."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tutelage.lab.models import make_tokenizer
from tutelage.lab.pairs import PairSpec, make_pair
from tutelage.models.anatomy import quiet_transformers

ZOO = Path(__file__).with_name("zoo")
EMBEDDED_SPEC = PairSpec()
EMBEDDED_SEED = 0
VERIFIER = EMBEDDED_SPEC.task.verifier


def build(
    output: Path = ZOO,
    *,
    spec: PairSpec = EMBEDDED_SPEC,
    seed: int = EMBEDDED_SEED,
    progress: Callable[[str, int, float], None] | None = None,
) -> dict[str, Path]:
    """Train the models of a spec and save each with its tokenizer under `output`."""
    tokenizer = make_tokenizer(spec.task)
    paths: dict[str, Path] = {}
    for name, model in make_pair(spec, seed, progress).items():
        folder = output / name
        shutil.rmtree(folder, ignore_errors=True)
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        paths[name] = folder
    return paths


def model_path(name: str) -> Path:
    """Directory of an embedded model: student, compatible, incompatible or same_data."""
    return ZOO / name
