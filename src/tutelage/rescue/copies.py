"""Known questions, and whether a new one is a copy of them."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tutelage.config.rescue import MinHash, Near, Semantic
from tutelage.errors import MachineError
from tutelage.rescue.encoders import Encoder, Neighbours, Vectors, load_encoder
from tutelage.rescue.passages import Hashes, PassageIndex, contained_share, hashes_of
from tutelage.rescue.wording import exact_key, figures_of, goes_on, words_of

Kind = Literal["exact", "respelled", "contained", "near", "semantic"]
KINDS: tuple[Kind, ...] = ("exact", "respelled", "contained", "near", "semantic")
CONTAINED = 0.8
"""Share of the shorter question's passages that are in the longer one."""
SHORT, CONTAINED_SHORT, NEAR_SHORT = 16, 0.95, 0.9
"""Of few words one other word is a small part, and makes another question."""
PHRASE = 8
"""Fewer words without a number are a phrase that many questions may hold."""
RARE = 20
"""A copy shares a passage that at most this many known questions have."""
_PERMUTATIONS, _BANDS = 120, 30


@dataclass(frozen=True)
class Question:
    """What is compared, in every form in which it is."""

    text: str
    """The question without its template."""

    @cached_property
    def words(self) -> list[str]:
        """Its words, numbers and symbols."""
        return words_of(self.text)

    @cached_property
    def figures(self) -> Counter[str]:
        """Its numbers and signs."""
        return figures_of(self.words)

    @cached_property
    def runs(self) -> Hashes:
        """Hashes of its runs of words."""
        return hashes_of(self.words)

    @cached_property
    def pairs(self) -> set[str]:
        """Its pairs of neighbouring words."""
        return {" ".join(self.words[i : i + 2]) for i in range(max(1, len(self.words) - 1))}

    @cached_property
    def sketch(self) -> Any:
        """MinHash of its pairs."""
        sketch = _rensa().RMinHash(num_perm=_PERMUTATIONS, seed=0)
        sketch.update(list(self.pairs))
        return sketch

    @cached_property
    def keys(self) -> tuple[bytes, bytes]:
        """What equal questions share, and what those of the same words do."""
        return digest_of(exact_key(self.text)), digest_of(" ".join(self.words))


@dataclass(frozen=True, slots=True)
class Match:
    """A known question of which a new one is a copy."""

    kind: Kind
    """exact: equal but for case and outer white space; respelled: the same words, numbers and
    symbols; contained: one stands in the other; near: most pairs of words are shared, and all
    numbers; semantic: close in an encoder's space."""
    similarity: float
    """1 for exact and respelled; else what the kind's threshold is compared with."""
    places: tuple[int, ...]
    """The known questions, in the order in which they came; several where they are equal."""


class Judge:
    """How near questions are found, shared by all sets of known ones."""

    def __init__(self, near: Near | None) -> None:
        """Load what the setting needs.

        Raises:
            MachineError: a package or an encoder that is not on this machine.
        """
        self.near = near
        self.encoder: Encoder | None = None
        if isinstance(near, Semantic):
            self.encoder = load_encoder(near.encoder)
        elif isinstance(near, MinHash):
            _rensa()

    def encode(self, questions: Sequence[Question]) -> Vectors | None:
        """Unit vectors of questions; None where no encoder is asked for."""
        return None if self.encoder is None else self.encoder([q.text for q in questions])


class Known:
    """Questions to be recognised; more may join at any time."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._texts: list[str] = []
        self._exact: defaultdict[bytes, list[int]] = defaultdict(list)
        self._respelled: defaultdict[bytes, list[int]] = defaultdict(list)
        self._passages = PassageIndex()
        self._neighbours = Neighbours()
        self._distinct: list[int] = []
        self._sketches = (
            _rensa().RMinHashLSH(
                threshold=judge.near.threshold, num_perm=_PERMUTATIONS, num_bands=_BANDS
            )
            if isinstance(judge.near, MinHash)
            else None
        )

    def __len__(self) -> int:
        return len(self._texts)

    def text(self, place: int) -> str:
        """A known question."""
        return self._texts[place]

    def add(self, question: Question, vector: Vectors | None = None) -> int:
        """A question to be found from now on; its place."""
        place = len(self._texts)
        self._texts.append(question.text)
        exact, respelled = question.keys
        self._exact[exact].append(place)
        same = self._respelled[respelled]
        same.append(place)
        if len(same) > 1:  # what is like this one is like the first
            return place
        self._distinct.append(place)
        self._passages.add(question.runs)
        if self._sketches is not None:
            self._sketches.insert(place, question.sketch)
        if vector is not None:
            self._neighbours.add(vector)
        return place

    def ask(self, vectors: Vectors | None) -> None:
        """Prepare for the questions with these vectors; `find` then takes their row."""
        if vectors is not None:
            self._neighbours.ask(vectors)

    def find(self, question: Question, row: int) -> Match | None:
        """The known question of which this one is a copy, if any; the plainest kind first."""
        exact, respelled = question.keys
        if places := self._exact.get(exact):
            return Match("exact", 1.0, tuple(places))
        if question.words and (places := self._respelled.get(respelled)):
            return Match("respelled", 1.0, tuple(places))
        return self._contained(question) or self._near(question) or self._semantic(row)

    def _contained(self, question: Question) -> Match | None:
        best: Match | None = None
        for number, rarest in self._passages.find(question.runs) if question.words else ():
            if rarest > RARE:
                continue
            place = self._distinct[number]
            other = Question(self._texts[place])
            if not (question.figures <= other.figures or other.figures <= question.figures):
                continue
            longer, shorter = sorted((question.words, other.words), key=len, reverse=True)
            if len(shorter) < PHRASE and not figures_of(shorter):
                continue
            share = contained_share(shorter, longer)
            least = CONTAINED_SHORT if len(shorter) < SHORT else CONTAINED
            if (
                share >= least
                and (best is None or share > best.similarity)
                and not goes_on(longer, shorter)
            ):
                best = Match("contained", share, (place,))
        return best

    def _near(self, question: Question) -> Match | None:
        if not question.words or self._sketches is None or not isinstance(self.judge.near, MinHash):
            return None
        least = self.judge.near.threshold
        if len(question.words) < SHORT:
            least = max(least, NEAR_SHORT)
        best: Match | None = None
        for place in sorted(self._sketches.query(question.sketch)):
            other = Question(self._texts[place])
            similarity = len(question.pairs & other.pairs) / len(question.pairs | other.pairs)
            if (
                similarity >= least
                and (best is None or similarity > best.similarity)
                and question.figures == other.figures
            ):
                best = Match("near", similarity, (place,))
        return best

    def _semantic(self, row: int) -> Match | None:
        if not isinstance(self.judge.near, Semantic) or not self._distinct:
            return None
        similarity, number = self._neighbours.nearest(row)
        if similarity < self.judge.near.threshold:
            return None
        return Match("semantic", similarity, (self._distinct[number],))


def _rensa() -> Any:
    try:
        import rensa
    except ImportError:
        raise MachineError(
            "near copies are found with the package rensa; pip install 'tutelage[rescue]', or "
            "take --near none, which still finds equal and contained questions"
        ) from None
    return rensa


def digest_of(text: str) -> bytes:
    """Twelve bytes that stand for a text."""
    return hashlib.blake2b(text.encode(), digest_size=12).digest()
