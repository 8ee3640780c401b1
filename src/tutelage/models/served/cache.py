"""Scores of a served teacher on disk, in one SQLite file.

A row is keyed by the teacher and by what was asked; its checksum stands before it,
so that a damaged row is a row that is not there.
"""

import hashlib
import io
import json
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tutelage.errors import MachineError, UsageError
from tutelage.models.served.answers import Floats, PromptScores
from tutelage.models.served.server import Fingerprint

_CHECKSUM = 16
_TABLES = """
create table if not exists teachers (id integer primary key, model text, logprobs text);
create table if not exists scores
    (teacher integer, key blob, value blob, used real, primary key (teacher, key));
create index if not exists by_use on scores (used);
"""


class ScoreCache:
    """The scores of one teacher; safe to use from several threads and processes."""

    def __init__(self, folder: Path, fingerprint: Fingerprint, megabytes: int) -> None:
        """Open or make the file in `folder`.

        Raises:
            UsageError: the folder cannot be written.
        """
        self.path = folder / "scores.sqlite"
        self.limit = megabytes * 2**20
        self.lock = threading.Lock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._open(fingerprint)
            except sqlite3.DatabaseError:  # not a database: made anew
                self.path.rename(self.path.with_suffix(".damaged"))
                self._open(fingerprint)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"server.cache {folder} cannot be used: {error}") from None

    @staticmethod
    def key(
        sequence: Sequence[int],
        start: int,
        listed: int,
        asked: Sequence[Sequence[int]] | None,
    ) -> bytes:
        """What stands for a question."""
        question = json.dumps([list(sequence), start, listed, asked])
        return hashlib.blake2b(question.encode(), digest_size=20).digest()

    def get(self, key: bytes) -> PromptScores | None:
        """The scores kept for a question; None where there are none, or damaged ones."""
        try:
            return self._get(key)
        except sqlite3.Error:
            return None

    def _get(self, key: bytes) -> PromptScores | None:
        with self.lock, self.connection:
            row = self.connection.execute(
                "select value from scores where teacher = ? and key = ?", (self.teacher, key)
            ).fetchone()
            if row is None:
                return None
            scores = _unpacked(row[0])
            if scores is None:
                self.connection.execute(
                    "delete from scores where teacher = ? and key = ?", (self.teacher, key)
                )
                return None
            self.connection.execute(
                "update scores set used = ? where teacher = ? and key = ?",
                (time.time(), self.teacher, key),
            )
        return scores

    def put(self, key: bytes, scores: PromptScores) -> None:
        """Keep scores; those used longest ago leave where there is no room.

        Raises:
            MachineError: the disk is full or the file cannot be written.
        """
        value = _packed(scores)
        try:
            with self.lock, self.connection:
                self.connection.execute(
                    "insert or replace into scores values (?, ?, ?, ?)",
                    (self.teacher, key, value, time.time()),
                )
                self.size += len(value)
                if self.size > self.limit:
                    self._make_room()
        except sqlite3.Error as error:
            raise MachineError(f"server.cache {self.path} cannot be written: {error}") from None

    def _open(self, fingerprint: Fingerprint) -> None:
        self.connection = sqlite3.connect(self.path, timeout=30, check_same_thread=False)
        # Losing the file with the machine's power costs no more than asking again.
        self.connection.execute("pragma synchronous = off")
        with self.connection:
            self.connection.executescript(_TABLES)
            self.teacher = self._teacher(fingerprint)
            self.size = self._total()

    def _teacher(self, fingerprint: Fingerprint) -> int:
        """The number of this teacher: known by its log-probabilities, which differ by rounding."""
        rows = self.connection.execute(
            "select id, logprobs from teachers where model = ?", (fingerprint.model,)
        )
        for number, logprobs in rows.fetchall():
            known = _numbers(logprobs)
            if (
                known is not None
                and known.shape == fingerprint.logprobs.shape
                and fingerprint.distance(known) <= fingerprint.tolerance
            ):
                return int(number)
        cursor = self.connection.execute(
            "insert into teachers (model, logprobs) values (?, ?)",
            (fingerprint.model, json.dumps(fingerprint.logprobs.tolist())),
        )
        return int(cursor.lastrowid or 0)

    def _total(self) -> int:
        (total,) = self.connection.execute("select sum(length(value)) from scores").fetchone()
        return int(total or 0)

    def _make_room(self) -> None:
        """Drop the least recently used tenth at a time."""
        self.size = self._total()
        while self.size > self.limit:
            self.connection.execute(
                "delete from scores where rowid in (select rowid from scores order by used "
                "limit max(1, (select count(*) from scores) / 10))"
            )
            self.size = self._total()


def _numbers(text: object) -> Floats | None:
    """A list of numbers; None for what damage makes of one."""
    try:
        return np.array(json.loads(str(text)), dtype=float)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None


def _packed(scores: PromptScores) -> bytes:
    arrays = {
        "sampled": scores.sampled,
        "ids": scores.ids.astype(np.int32),
        "logprobs": scores.logprobs.astype(np.float32),
    }
    if scores.asked is not None:
        arrays["asked"] = scores.asked
    with io.BytesIO() as buffer:
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        content = buffer.getvalue()
    return hashlib.blake2b(content, digest_size=_CHECKSUM).digest() + content


def _unpacked(value: object) -> PromptScores | None:
    if not isinstance(value, bytes):
        return None
    checksum, content = value[:_CHECKSUM], value[_CHECKSUM:]
    if hashlib.blake2b(content, digest_size=_CHECKSUM).digest() != checksum:
        return None
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return PromptScores(
            sampled=arrays["sampled"],
            ids=arrays["ids"].astype(np.int64),
            logprobs=arrays["logprobs"].astype(np.float64),
            asked=arrays.get("asked"),
            decoded={},
        )
