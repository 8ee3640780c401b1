"""Several servers of one model, asked as if they were one.

A request goes to the server with the fewest under way. One that fails to answer is left out,
and the request goes to another; it comes back once it answers again and has proved to be the
same model.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tutelage.config import ServerConfig
from tutelage.errors import ServerError, UsageError
from tutelage.models.served.answers import Completion, PromptScores
from tutelage.models.served.client import Refused, map_in_flight
from tutelage.models.served.server import Capabilities, Fingerprint, Server
from tutelage.types import SamplingParams

T = TypeVar("T")
Item = TypeVar("Item")

LOOK_AGAIN_S = 5.0  # between looks at a server that is out
_LOOK_S = 2.0  # most that a look takes
# What a server answers that was restarted with another model, key or version; the request is
# not at fault, so another server is asked.
_OF_THE_SERVER = {401, 403, 404}


@dataclass(eq=False)
class _Member:
    server: Server
    under_way: int = 0
    answered: int = 0
    out: str = ""
    """Why it is left out; empty while it is not."""
    look_at: float = 0.0
    """When it is looked at again."""
    looked_at: bool = False
    """Somebody is looking at it now."""

    @property
    def url(self) -> str:
        return self.server.settings.address


class Fleet:
    """Servers of one model; to its users a `Server`."""

    def __init__(self, settings: ServerConfig, role: str) -> None:
        """Connect to all of them.

        Raises:
            ServerError: one does not answer, or serves no such model.
            UsageError: a key variable that is not set.
        """
        self.settings, self.role = settings, role
        servers = [Server(settings.at(url), role) for url in settings.url]
        self.first = servers[0]
        self.model, self.max_model_len = self.first.model, self.first.max_model_len
        self.patient = servers  # they try again by themselves: for what is asked at the start
        self.members = [_Member(server.hasty()) for server in servers]
        self.prove: Callable[[Server], None] | None = None
        self.events: list[str] = []
        self.retried: list[str] = []
        self._changed = threading.Condition()
        self._given_up = threading.Event()

    # --- requests ----------------------------------------------------------------------------

    def ask(self, work: Callable[[Server], T]) -> T:
        """What `work` gets of the least busy server; another is asked where one fails.

        Raises:
            ServerError: as many failed as `retries` allows, or none was there for `timeout_s`.
        """
        tries = 1 + self.settings.retries
        for attempt in range(1, tries + 1):
            member = self._take()
            try:
                result = work(member.server)
                with self._changed:
                    member.answered += 1
                return result
            except ServerError as error:
                if isinstance(error, Refused) and error.status not in _OF_THE_SERVER:
                    raise
                self._leave_out(member, str(error))
                if attempt == tries or self._given_up.is_set():
                    raise
                self.retried.append(f"{member.url}: {error}")
            finally:
                with self._changed:
                    member.under_way -= 1
                    self._changed.notify_all()
        raise AssertionError("unreachable")

    def map(self, ask: Callable[[Server, Item], T], items: Sequence[Item]) -> list[T]:
        """`ask` of every item at some server, all servers at once; the first fault ends all."""
        limit = self.settings.max_in_flight * len(self.members)
        return map_in_flight(
            lambda item: self.ask(lambda server: ask(server, item)), items, limit, self._given_up
        )

    def each(self, work: Callable[[Server], T], *, returning: bool = False) -> list[T]:
        """What `work` gets of every server that is there.

        `returning` are also those that were out: `work` proves that they may come back.

        Raises:
            ServerError: none is left, nor came back within `timeout_s`.
        """
        found = []
        for member in self.members:
            if member.out and not returning:
                continue
            try:
                if member.out:
                    self._greet(member)
                found.append(work(member.server))
            except ServerError as error:
                self._leave_out(member, str(error))
            else:
                self._take_back(member)
        return found or [self.ask(work)]

    def up(self) -> frozenset[str]:
        """Addresses of the servers that are not out."""
        return frozenset(member.url for member in self.members if not member.out)

    def score(
        self, sequences: Sequence[Sequence[int]], listed: int, starts: Sequence[int] | None = None
    ) -> list[PromptScores]:
        """As `Server.score`, at one of them."""
        return self.ask(lambda server: server.score(sequences, listed, starts))

    def sample(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        seed: int,
        stops: frozenset[int],
        vocabulary: int,
    ) -> Completion:
        """As `Server.sample`, at one of them."""
        return self.ask(lambda server: server.sample(prompt, params, seed, stops, vocabulary))

    # --- what they are -----------------------------------------------------------------------

    def fingerprint(self, vocabulary: int) -> Fingerprint:
        """That of the first; all others must be the same model.

        Raises:
            ServerError: they are not.
        """
        prints = [server.fingerprint(vocabulary) for server in self.patient]
        own = replace(prints[0], spread=max(p.spread for p in prints))
        for server, other in zip(self.patient, prints, strict=True):
            distance = own.distance(other.logprobs)
            if not distance <= own.tolerance:
                raise ServerError(
                    f"the {self.role}'s servers {self.first.settings.address} and "
                    f"{server.settings.address} do not serve the same model: log-probabilities of "
                    f"a fixed sequence differ by {distance:.3g} nats (rounding explains "
                    f"{own.tolerance:.3g}). Serve one model with one precision at all of them"
                )
        return own

    def require_same(self, fingerprint: Fingerprint, logprobs: Any) -> None:
        """As `Server.require_same`."""
        self.first.require_same(fingerprint, logprobs)

    def capabilities(self) -> Capabilities:
        """What all of them can do."""
        able = [server.capabilities() for server in self.patient]
        lengths = [a.max_model_len for a in able if a.max_model_len is not None]
        return replace(
            able[0],
            max_model_len=min(lengths, default=None),
            max_logprobs=min(a.max_logprobs for a in able),
            token_ids=all(a.token_ids for a in able),
            weight_sync=all(a.weight_sync for a in able),
        )

    def identity(self) -> dict[str, Any]:
        """What they say they are."""
        told = [server.identity() for server in self.patient]
        return {**told[0], "url": [one["url"] for one in told], "servers": told}

    def take_retried(self) -> list[str]:
        """The faults that passed since the last call."""
        taken, self.retried = self.retried, []
        return taken

    def take_events(self) -> list[str]:
        """Who left and who came back since the last call."""
        taken, self.events = self.events, []
        return taken

    # --- who is there ------------------------------------------------------------------------

    def _take(self) -> _Member:
        """The least busy server, waited for where all are out."""
        deadline = time.monotonic() + self.settings.timeout_s
        while True:
            self._look_again()
            with self._changed:
                there = [member for member in self.members if not member.out]
                if there:
                    chosen = min(there, key=lambda m: (m.under_way, m.answered))
                    chosen.under_way += 1
                    return chosen
                if self._given_up.is_set() or time.monotonic() >= deadline:
                    raise self._none_left()
                self._changed.wait(min(0.1, LOOK_AGAIN_S))

    def _look_again(self) -> None:
        """Look at one server that is out and due, if nobody does."""
        with self._changed:
            now = time.monotonic()
            due = [m for m in self.members if m.out and not m.looked_at and m.look_at <= now]
            if not due:
                return
            member = due[0]
            member.looked_at = True
        try:
            self._greet(member)
            if self.prove is not None:
                self.prove(member.server)
        except (ServerError, UsageError) as error:
            if str(error) != member.out:
                self._leave_out(member, str(error))
        else:
            self._take_back(member)
        finally:
            with self._changed:
                member.looked_at = False
                member.look_at = time.monotonic() + LOOK_AGAIN_S
                self._changed.notify_all()

    def _greet(self, member: _Member) -> None:
        """Ask whether a server that was out answers; its old connections may be dead.

        Raises:
            ServerError: it does not.
        """
        member.server.require_answer(_LOOK_S)
        member.server = member.server.hasty()

    def _leave_out(self, member: _Member, reason: str) -> None:
        with self._changed:
            if not member.out:
                self.events.append(f"left out: {reason}")
                member.look_at = time.monotonic() + LOOK_AGAIN_S
            member.out = reason

    def _take_back(self, member: _Member) -> None:
        with self._changed:
            if member.out:
                self.events.append(f"the {self.role}'s server {member.url} is back")
            member.out = ""

    def _none_left(self) -> ServerError:
        told = "; ".join(f"{member.url}: {member.out}" for member in self.members)
        return ServerError(
            f"none of the {len(self.members)} servers of the {self.role} answers, nor did one come "
            f"back within server.timeout_s {self.settings.timeout_s:g}. {told}"
        )


def connect(settings: ServerConfig, role: str) -> "Server | Fleet":
    """The server of these settings, or the several it names.

    Raises:
        ServerError: as `Server`.
        UsageError: as `Server`.
    """
    return Server(settings, role) if len(settings.url) == 1 else Fleet(settings, role)
