"""One JSON question, one bounded JSON answer, with deadlines and retries.

Nothing here follows a redirect, reads a proxy from the environment, or lets the
API key out of the request's header.
"""

import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from importlib import import_module
from typing import Any, TypeVar

from tutelage.config import ServerConfig
from tutelage.errors import MachineError, ServerError, UsageError
from tutelage.secrets import keep_secret, redacted

T = TypeVar("T")
Item = TypeVar("Item")

MEGABYTE = 2**20
LONGEST_PAUSE_S = 30.0
_GRACE_S = 0.5  # in which a request that knows its own deadline may say more of it
_MAY_PASS = {408, 409, 425, 429, 500, 502, 503, 504}
_MEANING = {
    401: "it wants an API key: put it into an environment variable and the variable's NAME into "
    "server.key_env",
    403: "it refuses this key, or this endpoint is switched off",
    404: "it has no such model or endpoint: check server.url and server.model",
    422: "it does not understand the request: its version may differ from the tested one "
    "(docs/servers.md)",
}


class Refused(ServerError):
    """The server answered that it will not, and asking again would not help."""

    def __init__(self, message: str, status: int, said: str) -> None:
        super().__init__(message)
        self.status = status
        self.said = said


class BadAnswer(Exception):
    """An answer that is not what was asked for; tried once more, then a `ServerError`."""


class _MayPass(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, fault: str, pause: float | None = None) -> None:
        super().__init__(fault)
        self.pause = pause


class Client:
    """Asks one server; safe to use from many threads."""

    def __init__(self, settings: ServerConfig, role: str) -> None:
        """Open connections lazily.

        Raises:
            UsageError: the variable that should hold the key is not set.
            MachineError: the extra is not installed.
        """
        self._http = _extra("httpx2")
        self._tenacity = _extra("tenacity")
        self.settings, self.role = settings, role
        self.retried: list[str] = []  # faults that passed, in order
        self._given_up = threading.Event()
        self._key = ""
        if settings.key_env is not None:
            self._key = os.environ.get(settings.key_env, "").strip()
            if not self._key:
                raise UsageError(
                    f"{role}.server.key_env names the environment variable {settings.key_env}, "
                    "which is not set; export it, or leave key_env out where no key is needed"
                )
            keep_secret(self._key)
            if not (self._key.isascii() and self._key.isprintable() and " " not in self._key):
                raise UsageError(
                    f"the environment variable {settings.key_env} holds no API key: it has blanks, "
                    "line breaks or letters that no header takes"
                )
        self._client = self._http.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=self._http.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s)),
            limits=self._http.Limits(max_connections=settings.max_in_flight + 1),
            follow_redirects=False,
            trust_env=False,
        )
        weakref.finalize(self, self._client.close)

    def get(self, path: str, read: Callable[[Any], T], limit: int = MEGABYTE) -> T:
        """What `read` makes of the answer to GET."""
        return self._ask("GET", path, None, read, limit)

    def post(self, path: str, body: Any, read: Callable[[Any], T], limit: int = 16 * MEGABYTE) -> T:
        """What `read` makes of the answer to POST.

        Args:
            path: of the endpoint.
            body: sent as JSON.
            read: checks the decoded answer; raises `BadAnswer`.
            limit: most bytes of an answer.

        Raises:
            Refused: 4xx, with what the server said.
            ServerError: no good answer after all tries.
        """
        return self._ask("POST", path, body, read, limit)

    def map(self, ask: Callable[[Item], T], items: Sequence[Item]) -> list[T]:
        """`ask` of every item, `max_in_flight` at once; the first fault ends all."""
        return map_in_flight(ask, items, self.settings.max_in_flight, self._given_up)

    def take_retried(self) -> list[str]:
        """The faults that passed since the last call."""
        taken, self.retried = self.retried, []
        return taken

    def _ask(self, method: str, path: str, body: Any, read: Callable[[Any], T], limit: int) -> T:
        tenacity = self._tenacity
        bad_answers = 0

        def attempt() -> T:
            nonlocal bad_answers
            try:
                return read(self._within_deadline(method, path, body, limit))
            except BadAnswer as fault:
                bad_answers += 1
                if bad_answers > 1:
                    raise self._error(path, self._clean(str(fault))) from None
                raise _MayPass(self._clean(str(fault))) from None

        def pause(state: Any) -> float:
            wish = state.outcome.exception().pause
            jittered = tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_PAUSE_S)
            return float(jittered(state)) if wish is None else min(wish, LONGEST_PAUSE_S)

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(1 + self.settings.retries)
            | tenacity.stop_when_event_set(self._given_up),
            sleep=tenacity.sleep_using_event(self._given_up),
            wait=pause,
            retry=tenacity.retry_if_exception_type(_MayPass),
            before_sleep=lambda state: self.retried.append(f"{path}: {state.outcome.exception()}"),
            reraise=True,
        )
        try:
            result: T = retrying(attempt)
        except _MayPass as fault:
            tries = retrying.statistics["attempt_number"]
            told = f"{fault} ({tries} {'try' if tries == 1 else 'tries'})"
            if str(fault).startswith("ConnectError"):
                told += "; start it there (vllm serve ..., docs/servers.md), or correct server.url"
            raise self._error(path, told) from None
        return result

    def _within_deadline(self, method: str, path: str, body: Any, limit: int) -> Any:
        """As `_once`, given up when the time is over, whatever it is waiting for.

        A socket's own time-outs begin anew with every byte, those of the headers included.
        """
        patience = self.settings.timeout_s
        answer: Future[Any] = Future()

        def ask() -> None:
            try:
                answer.set_result(self._once(method, path, body, limit))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=ask, daemon=True).start()
        try:
            return answer.result(patience + _GRACE_S)
        except TimeoutError:
            raise _MayPass(f"no whole answer within server.timeout_s {patience:g}") from None

    def _once(self, method: str, path: str, body: Any, limit: int) -> Any:
        http, patience = self._http, self.settings.timeout_s
        deadline = time.monotonic() + patience
        try:
            with self._client.stream(method, self.settings.url[0] + path, json=body) as response:
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > limit:
                        raise self._error(
                            path,
                            f"its answer is longer than the {limit:,} bytes that this question "
                            "can need, so it was not read on",
                        )
                    if time.monotonic() > deadline:
                        raise _MayPass(
                            f"no whole answer within server.timeout_s {patience:g}; it still sends"
                        )
        except http.TimeoutException as error:
            waited = "no connection" if isinstance(error, http.ConnectTimeout) else "no answer"
            raise _MayPass(f"{waited} within server.timeout_s {patience:g}") from None
        except http.HTTPError as error:
            raise _MayPass(self._clean(f"{type(error).__name__}: {error}")) from None
        return self._decoded(response, path, bytes(content))

    def _decoded(self, response: Any, path: str, content: bytes) -> Any:
        status = int(response.status_code)
        if status in _MAY_PASS:
            raise _MayPass(
                f"HTTP {status}: {self._clean(_said(content))}",
                _seconds(response.headers.get("retry-after")),
            )
        if 300 <= status < 400:
            raise self._error(
                path,
                f"it redirects (HTTP {status}) to "
                f"{self._clean(response.headers.get('location', 'nowhere'))}; redirects are not "
                "followed, so set server.url to where it really is",
            )
        if status >= 400:
            said = self._clean(_said(content))
            meaning = _MEANING.get(status, "it refuses the request")
            raise Refused(
                str(self._error(path, f"HTTP {status}: {meaning}. It says: {said}")), status, said
            )
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise BadAnswer(f"the answer is not JSON: {_said(content)}") from None

    def _error(self, path: str, fault: str) -> ServerError:
        return ServerError(f"the {self.role}'s server {self.settings.address}{path}: {fault}")

    def _clean(self, text: str) -> str:
        """Text from outside: without the key, on one line, without terminal escapes."""
        text = redacted(text)
        text = "".join(c if c.isprintable() else " " for c in text)
        return text if len(text) <= 400 else text[:400] + " ..."


def map_in_flight(
    ask: Callable[[Item], T], items: Sequence[Item], limit: int, given_up: threading.Event
) -> list[T]:
    """`ask` of every item, `limit` at once; the first fault ends all and sets `given_up`."""
    given_up.clear()
    if len(items) < 2:
        return [ask(item) for item in items]
    with ThreadPoolExecutor(min(limit, len(items))) as pool:
        futures = [pool.submit(ask, item) for item in items]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            return [future.result() for future in futures]
        except BaseException:
            given_up.set()  # the others neither wait for a retry nor make one
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _said(content: bytes) -> str:
    """The message of vLLM's error body, or the body's beginning."""
    text = content[:4000].decode("utf-8", "replace")
    try:
        body = json.loads(content[:100_000])
        error = body.get("error", body)
        said = error.get("message") or body.get("detail") if isinstance(error, dict) else error
        return said if isinstance(said, str) else text
    except (ValueError, AttributeError, RecursionError):
        return text


def _seconds(retry_after: str | None) -> float | None:
    try:
        seconds = float(retry_after or "")
    except ValueError:
        return None
    return seconds if 0 <= seconds < float("inf") else None


def _extra(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise MachineError(
            f"a server needs the package {name}; pip install 'tutelage[serve]'"
        ) from None
