"""What a pair will gain, foretold from what `check` measures by a forest of trained pairs.

The pairs are those of `tutelage lab population`: tiny models, 160 steps of 64 rollouts. The forest
learns which share of its teacher's accuracy a student ends with, since on-policy distillation that
works ends at the teacher, above or below the student. A pair unlike all of them is outside of what
is known here, whatever the forest says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.ops.intervals import proportion_interval

Floats = NDArray[np.float64]
Row = Mapping[str, Any]
POPULATION = Path(__file__).parent / "population.parquet"
"""The pairs that were trained, one row each."""
CONFIDENCE = 0.9
"""Of the interval of a predicted gain."""
NEEDED = ("student_accuracy", "teacher_accuracy")
"""Features without which nothing is foretold."""
_LEAST_TEACHER = 0.02  # below it, the share of the teacher's accuracy that was reached says nothing
_MOST_SHARE = 1.5
_FAR = 0.95  # of the pairs have a pair of another kind as near as the limit of what is known
_LEAST_SPREAD = 0.05
_QUESTIONS = 64  # of a check by default
_TREES = 400
UNSEEN = ("foretold", "foretold_spread")
"""Columns of what `unseen` gives."""

# Feature -> where a look of `check` holds it.
_PLACES: dict[str, tuple[str, ...]] = {
    "student_accuracy": ("capability", "accuracy", "student"),
    "teacher_accuracy": ("capability", "accuracy", "teacher"),
    "accuracy_gap": ("capability", "accuracy", "gap"),
    "within_reach": ("capability", "right_answers", "within_reach"),
    "passable": ("capability", "right_answers", "passable"),
    "surprise": ("capability", "right_answers", "surprise"),
    "unlikely": ("capability", "right_answers", "unlikely"),
    "advantage": ("alignment", "advantage", "value"),
    "alignment": ("alignment", "alignment", "value"),
    "mean_cosine": ("alignment", "mean_cosine", "value"),
    "overlap_ratio": ("agreement", "overlap/ratio"),
    "mass_student": ("agreement", "overlap/mass_student"),
    "mass_teacher": ("agreement", "overlap/mass_teacher"),
    "overlap_advantage": ("agreement", "overlap/advantage"),
    "kl_reverse": ("agreement", "kl/reverse"),
    "kl_forward": ("agreement", "kl/forward"),
    "entropy_student": ("agreement", "entropy/student"),
    "entropy_teacher": ("agreement", "entropy/teacher"),
    "auroc": ("agreement", "sequence_reward/auroc"),
    "familiar": ("familiar", "share", "value"),
}
FEATURES = (*_PLACES, "rescue_wrong", "rescue_right")
"""Names of the features, in the order of the model's columns."""


def features_of(look: Mapping[str, Any]) -> dict[str, float]:
    """The features of a pair from one look of check.json; what was not measured is absent.

    `rescue_wrong` and `rescue_right` are the teacher's gain over the student when both continue the
    student's wrong, or right, answers from their first tenth on.
    """
    found = {name: _at(look, place) for name, place in _PLACES.items()}
    for outcome in ("wrong", "right"):
        early = [part for part in look.get("rescue", ()) if part["outcome"] == outcome]
        first = min(early, key=lambda part: part["depth"], default=None)
        found[f"rescue_{outcome}"] = None if first is None else first["gain"]
    return {name: value for name, value in found.items() if value is not None}


def _at(look: Mapping[str, Any], place: Sequence[str]) -> float | None:
    value: Any = look
    for key in place:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return None if value is None else float(value)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What training a pair as the population was trained would give."""

    gain: float
    """Of held-out accuracy at temperature 1."""
    interval: tuple[float, float]
    """90 %: by the errors on kinds of pairs that the forest had not seen."""
    distance: float
    """To the nearest pair of the population, in units of the features' spread."""
    limit: float
    """The distance up to which the errors were looked at."""

    @property
    def known(self) -> bool:
        """Whether pairs as far from all others were foretold; else the gain is a guess."""
        return self.distance <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "gain": self.gain,
            "interval": list(self.interval),
            "known": self.known,
            "distance": self.distance,
            "limit": self.limit,
        }


class Predictor:
    """A forest of trained pairs (scikit-learn's extremely randomised trees).

    Rows hold the features (absent or None where not measured) and the accuracies `before`, `after`
    and `teacher` of a run; what is foretold depends on them alone.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self.rows = list(rows)
        self._features = matrix(rows)
        teacher = np.maximum([row["teacher"] for row in rows], _LEAST_TEACHER)
        share = np.clip([row["after"] for row in rows] / teacher, 0.0, _MOST_SHARE)
        self._forest = ExtraTreesRegressor(
            _TREES, min_samples_leaf=2, max_features=0.5, random_state=0
        ).fit(self._features, share)
        self._middle, self._spread = _spread(self._features)

    def gains(self, rows: Sequence[Row]) -> tuple[Floats, Floats]:
        """The gains expected of pairs, and how far the trees disagree; both [rows].

        A feature that is absent is one not measured; the two accuracies must be there.
        """
        features = matrix(rows).astype(np.float32)
        trees = np.stack([tree.predict(features) for tree in self._forest.estimators_])
        teacher = np.array([row["teacher_accuracy"] for row in rows])
        student = np.array([row["student_accuracy"] for row in rows])
        gains = np.clip(trees.mean(axis=0) * teacher, 0.0, 1.0) - student
        return gains, trees.std(axis=0) * teacher

    def distance(self, features: Row, *, without: str | None = None) -> float:
        """To the nearest pair, over the features that both have; `without` leaves a kind out."""
        scaled = self._scaled(matrix([features]))
        others = self._scaled(self._features)
        if without is not None:
            others = others[[row["kind"] != without for row in self.rows]]
        square = (others - scaled) ** 2
        shared = ~np.isnan(square)
        enough = shared.mean(axis=1) >= 0.5
        if not enough.any():
            return float("inf")
        return float(np.sqrt(np.nanmean(square[enough], axis=1).min()))

    def _scaled(self, features: Floats) -> Floats:
        return (_tame(features) - self._middle) / self._spread


def matrix(rows: Sequence[Row]) -> Floats:
    """Features [rows, features], NaN where one was not measured."""
    found = [[row.get(name) for name in FEATURES] for row in rows]
    return np.array(found, dtype=np.float64)


def _tame(features: Floats) -> Floats:
    """Divergences have long tails, in which a distance would see nothing else."""
    return np.sign(features) * np.log1p(np.abs(features))


def _spread(features: Floats) -> tuple[Floats, Floats]:
    """Median and scale of every feature, at least a hundredth."""
    low, middle, high = np.nanquantile(_tame(features), [0.1, 0.5, 0.9], axis=0)
    return middle, np.maximum(high - low, 0.01)


def unseen(rows: Sequence[Row], by: str = "kind") -> tuple[Floats, Floats]:
    """`Predictor.gains` of every pair, by a forest that has seen no pair of its `by`."""
    gains, spreads = np.zeros(len(rows)), np.zeros(len(rows))
    for group in dict.fromkeys(row[by] for row in rows):
        held = [i for i, row in enumerate(rows) if row[by] == group]
        predictor = Predictor([row for row in rows if row[by] != group])
        gains[held], spreads[held] = predictor.gains([rows[i] for i in held])
    return gains, spreads


def gained(rows: Sequence[Row]) -> Floats:
    """What the pairs gained [rows]."""
    return np.array([row["after"] - row["before"] for row in rows])


def factor_of(errors: Floats, spreads: Floats, confidence: float = CONFIDENCE) -> float:
    """By what to multiply a spread so that intervals hold `confidence` of errors like these.

    Split-conformal: the ceil((n + 1) confidence)-th smallest of the absolute errors in units of
    their spread; infinite where there are too few (Vovk et al. 2005; Lei et al. 2018).
    """
    scores = np.sort(np.abs(errors) / (spreads + _LEAST_SPREAD))
    place = ceil((len(scores) + 1) * confidence)
    return float("inf") if place > len(scores) else float(scores[place - 1])


def interval_of(gain: float, spread: float, factor: float, student: float) -> tuple[float, float]:
    """The interval of a gain, cut where an accuracy ends.

    The student's own is known from some questions alone, so the cut is at the ends of its interval.
    """
    half = factor * (spread + _LEAST_SPREAD)
    low, high = proportion_interval([student] * _QUESTIONS)
    return max(gain - half, -high), min(gain + half, 1.0 - low)


def predict(features: Row) -> Prediction | None:
    """What a pair will gain; None where accuracies are not known, since nobody judged answers."""
    if any(features.get(name) is None for name in NEEDED):
        return None
    predictor, factor, limit = _learnt()
    (gain,), (spread,) = predictor.gains([features])
    return Prediction(
        gain=float(gain),
        interval=interval_of(float(gain), float(spread), factor, features["student_accuracy"]),
        distance=predictor.distance(features),
        limit=limit,
    )


def limit_of(predictor: Predictor) -> float:
    """How far most pairs are from the nearest of another kind."""
    nearest = [predictor.distance(row, without=row["kind"]) for row in predictor.rows]
    return float(np.quantile(nearest, _FAR))


@cache
def _learnt() -> tuple[Predictor, float, float]:
    rows = kept_pairs()
    predictor = Predictor(rows)
    foretold, spreads = (np.array([row[name] for row in rows]) for name in UNSEEN)
    return predictor, factor_of(foretold - gained(rows), spreads), limit_of(predictor)


def kept_pairs() -> list[dict[str, Any]]:
    """The rows that the package ships; a feature that was not measured is absent.

    `foretold` and `foretold_spread` are those of `unseen`.
    """
    import pyarrow.parquet as pq

    rows = pq.read_table(POPULATION).to_pylist()
    return [{key: value for key, value in row.items() if value is not None} for row in rows]
