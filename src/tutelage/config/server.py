"""A model behind a vLLM server."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import inet_aton
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
)

from tutelage.config.base import Section


def _server_url(url: str) -> str:
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{error}; write http://127.0.0.1:8000") from None
    if parts.username or parts.password:
        raise ValueError(
            "the URL holds a user or password, which would reach config.yaml and messages; put "
            "the key into an environment variable and its name into key_env"
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(f"{url!r} is not the address of a server; write http://127.0.0.1:8000")
    if parts.query or parts.fragment:
        raise ValueError("the URL has a query or fragment; give the server's address alone")
    if _is_link_local(host):
        raise ValueError(
            f"{host} is a link-local address, where clouds keep their credentials; no model "
            "server lives there"
        )
    return url.rstrip("/").removesuffix("/v1")


def _is_link_local(host: str) -> bool:
    try:
        return _address(host).is_link_local
    except ValueError:
        return False


def _address(host: str) -> IPv4Address | IPv6Address:
    """The address that a host is written as; the system also takes 2852039166 and 0xa9.254.1.

    Raises:
        ValueError: it is a name.
    """
    try:
        address = ip_address(host)
    except ValueError:
        try:
            return IPv4Address(inet_aton(host))
        except (OSError, UnicodeError):
            raise ValueError(f"{host} is no address") from None
    return getattr(address, "ipv4_mapped", None) or address


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError(  # what was given may be the key, so it is not repeated
            "the NAME of an environment variable is needed, in capitals; never the key itself"
        )
    return name


def _one_or_more(urls: object) -> object:
    return [urls] if isinstance(urls, str) else urls


def _server_urls(urls: tuple[str, ...]) -> tuple[str, ...]:
    cleaned = tuple(map(_server_url, urls))
    if not cleaned:
        raise ValueError("the list is empty; give the address of a server")
    if twice := {url for url in cleaned if cleaned.count(url) > 1}:
        raise ValueError(f"{', '.join(sorted(twice))} stands twice; one server is asked once")
    return cleaned


Urls = Annotated[
    tuple[str, ...],
    BeforeValidator(_one_or_more),
    AfterValidator(_server_urls),
    PlainSerializer(lambda urls: urls[0] if len(urls) == 1 else list(urls)),
]
VariableName = Annotated[str, AfterValidator(_variable)]


class ServerConfig(Section):
    """A vLLM server that plays the model's part; `path` then gives tokenizer and stop ids."""

    url: Urls
    """Address of the server, such as http://127.0.0.1:8000; or a list of servers of one model, of
    which the least busy is asked."""
    model: str | None = None
    """Name the model is served under; None takes the only one."""
    key_env: VariableName | None = None
    """NAME of the environment variable that holds the API key; never the key itself."""
    timeout_s: PositiveFloat = 120.0
    """Seconds an answer may take from the request to its last byte."""
    retries: NonNegativeInt = 4
    """Further tries after a fault that may pass: no connection, time-out, 429, 5xx."""
    max_in_flight: PositiveInt = 16
    """Requests under way at once, at each server."""
    cache: str | None = None
    """Teacher: folder that keeps scores on disk, for rollouts that are scored again."""
    cache_mb: PositiveInt = 1024
    """Most megabytes of the cache; the scores used longest ago leave first."""
    weights: str | None = None
    """Student: the folder the server was started on; its safetensors are overwritten at each
    step, so it must be a copy."""
    tolerance: PositiveFloat = 1e-4
    """Student: most nats between the server's and the trainer's log-probabilities of a probe
    after a weight sync; a bfloat16 server needs about .05."""
    allow_remote_sync: bool = False
    """Student: sync weights with a server that is not on loopback; its developer endpoints are
    open to whoever reaches them."""

    @property
    def address(self) -> str:
        """Where it is, for messages."""
        return ", ".join(self.url)

    @property
    def is_loopback(self) -> bool:
        """Whether every server runs on this machine."""
        return all(map(_is_loopback, self.url))

    def at(self, url: str) -> "ServerConfig":
        """The settings of one server of the list."""
        return self.model_copy(update={"url": (url,)})


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return _address(host).is_loopback
    except ValueError:
        return host == "localhost"
