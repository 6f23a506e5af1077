"""Asks one of several addresses: one queue, retry with backoff, plain refusals.

A request goes to the address with the fewest in flight. An address that fails rests, longer
each time, and is then asked one request at a time until it answers again. Nothing is asked of
an address that the user did not write: redirects are refused.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from selectit_dagster.errors import PassingError, UserError, first_line
from selectit_dagster.experiment.server_section import ServerSection
from selectit_dagster.inference.backends.server_kind import Asking
from selectit_dagster.inference.failures import DeviceBrokenError

# 408 and 429 and gateways: what passes by itself
_PASSING = frozenset({408, 425, 429, 502, 503, 504})
# what a single prompt may be to blame for: too long, not understood, or it broke the model
_OF_THE_ROWS = frozenset({400, 413, 422, 500})
_FIRST_REST, _LONGEST_REST = 0.5, 30.0
_CONNECT_SECONDS = 10.0
_ALIVE_SECONDS = 30.0
# a request with which a healthy address was lost so often is to blame itself
_STRIKES = 3


class RowsRefusedError(RuntimeError):
    """The server refuses, or broke at, these rows: fewer of them may go through."""


class ServerLostError(DeviceBrokenError):
    """No address answers any more."""


class _PassingAnswerError(Exception):
    """What may go through when it is asked again; ``rest`` is what the server asks to wait."""

    def __init__(self, why: str, rest: float = 0.0) -> None:
        super().__init__(why)
        self.rest = rest


@dataclass
class Address:
    """One address of the queue, and how it has fared."""

    url: str
    busy: int = 0
    failures: int = 0
    failing_since: float = 0.0
    rest_until: float = 0.0
    why: str = ""


Transport = Callable[[str, dict[str, Any] | None], tuple[int, dict[str, str], bytes]]


@dataclass
class ServerClient:
    """Sends requests to the addresses of a section.

    Parameters
    ----------
    section:
        Addresses and limits.
    transport:
        ``(url, body) -> (status, headers, content)``; raises OSError for what passes.
    clock, sleep:
        Time, replaced by tests.
    health:
        The path that tells whether an address is alive.
    """

    section: ServerSection
    transport: Transport | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    health: str = "/health"
    addresses: list[Address] = field(init=False)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.addresses = [Address(url) for url in self.section.url]
        self.key = api_key(self.section.api_key_env)
        self.send = self.transport or HttpTransport(self.section, self.key)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
        """Return the JSON that whichever address is free answers; retries what passes.

        Raises
        ------
        UserError
            For what no retry mends, with the server's words.
        RowsRefusedError
            For what the rows may be to blame for.
        ServerLostError
            When no address has answered for ``patience_seconds``.
        """
        strikes = 0
        while True:
            address = self._take()
            try:
                found = self._once(address.url, path, body)
            except (OSError, _PassingAnswerError) as error:
                # a connection lost at a server that is fine: this request may be the reason
                lost = isinstance(error, OSError) and self._is_alive(address.url)
                strikes += lost
                self._failed(address, error, strikes if lost else 0)
                if strikes >= _STRIKES:
                    raise RowsRefusedError(
                        f"{address.url} was lost {strikes} times with this request, and is "
                        f"healthy ({self._clean(first_line(error))})"
                    ) from error
            except BaseException:
                self._answered(address)
                raise
            else:
                self._answered(address)
                return found

    def at(self, url: str) -> Asking:
        """Return what asks one address, once, and explains every failure plainly."""

        def ask(path: str, body: dict[str, Any] | None = None) -> Any:  # noqa: ANN401
            try:
                return self._once(url, path, body)
            except (OSError, _PassingAnswerError) as error:
                raise PassingError(
                    f"no server answers at {url}: {self._clean(first_line(error))}",
                    hint="start it, correct server.url, or wait until it has loaded its model",
                ) from error
            except RowsRefusedError as error:
                raise UserError(
                    f"the server does not answer a first prompt: {error}",
                    hint="its log says more; ask it something yourself before going on",
                ) from error

        return ask

    # --- one request --------------------------------------------------------------------------

    def _once(self, url: str, path: str, body: dict[str, Any] | None) -> Any:  # noqa: ANN401
        status, headers, content = self.send(url + path, body)
        if status == HTTPStatus.OK:
            try:
                return json.loads(content)
            except ValueError as error:
                raise UserError(
                    f"{url}{path} did not answer with JSON: {self._words(content)}",
                    hint="server.url must lead to the inference server itself",
                ) from error
        what = f"{url}{path} answered {status}: {self._words(content)}"
        if status in _PASSING:
            raise _PassingAnswerError(what, _seconds(headers))
        if status in _OF_THE_ROWS and body is not None:
            raise RowsRefusedError(what)
        raise UserError(what, hint=self._remedy(status))

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            name = self.section.api_key_env
            state = "the key that it holds is refused" if self.key else "it is not set"
            return f"the API key comes from the environment variable {name}: {state}"
        if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
            return "redirects are not followed: give the address that it leads to"
        if status == HTTPStatus.NOT_FOUND:
            return "check server.url, server.kind and server.model, and the server's version"
        return "the server's log says more"

    def _words(self, content: bytes) -> str:
        """Return what a server says of an error, in one line."""
        text = content[:4000].decode("utf-8", errors="replace")
        try:
            said = json.loads(text)
        except ValueError:
            said = text
        while isinstance(said, dict):
            said = next((said[k] for k in ("error", "message", "detail") if said.get(k)), str(said))
        return self._clean(" ".join(str(said).split())[:400]) or "nothing"

    def _clean(self, text: str) -> str:
        return text.replace(self.key, "***") if self.key else text

    # --- the queue ----------------------------------------------------------------------------

    def _take(self) -> Address:
        """Wait for a place at an address, and take it."""
        with self._changed:
            while True:
                now = self.clock()
                self._require_one(now)
                free = [a for a in self.addresses if a.rest_until <= now and a.busy < self._room(a)]
                if free:
                    address = min(free, key=lambda a: a.busy)
                    address.busy += 1
                    return address
                rests = [a.rest_until - now for a in self.addresses if a.rest_until > now]
                if any(a.busy for a in self.addresses):
                    self._changed.wait(min(rests, default=None))
                else:
                    self.sleep(min(rests))

    def _room(self, address: Address) -> int:
        return 1 if address.failures else self.section.in_flight

    def _require_one(self, now: float) -> None:
        """Refuse to go on when no address has answered for too long."""
        patience = self.section.patience_seconds
        if all(a.failures > 1 and now - a.failing_since > patience for a in self.addresses):
            said = "; ".join(a.why for a in self.addresses)
            raise ServerLostError(
                f"no server has answered for {patience:.0f} s ({said}). What came back is kept: "
                "start it again, and run again"
            )

    def _is_alive(self, url: str) -> bool:
        try:
            return self.send(url + self.health, None)[0] == HTTPStatus.OK
        except (OSError, UserError):
            return False

    def _failed(self, address: Address, error: Exception, strikes: int) -> None:
        """Let an address rest; with ``strikes`` it is alive, and rests for this request alone."""
        with self._changed:
            now = self.clock()
            if not address.failures:
                address.failing_since = now
            address.failures = 0 if strikes else address.failures + 1
            rest = min(_FIRST_REST * 2 ** max(strikes, address.failures), _LONGEST_REST) / 2
            asked = error.rest if isinstance(error, _PassingAnswerError) else 0.0
            address.rest_until = now + max(rest, min(asked, 2 * _LONGEST_REST))
            address.why = f"{address.url}: {self._clean(first_line(error))}"
            address.busy -= 1
            self._changed.notify_all()

    def _answered(self, address: Address) -> None:
        with self._changed:
            address.busy -= 1
            address.failures = 0
            self._changed.notify_all()


class HttpTransport:
    """HTTP by ``requests``: pooled connections, certificates and proxies as it does them."""

    def __init__(self, section: ServerSection, key: str | None) -> None:
        import requests
        from requests.adapters import HTTPAdapter

        self.session = requests.Session()
        places = section.in_flight * max(1, len(section.url))
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=places))
        self.seconds = section.timeout_seconds
        self.key = key

    def __call__(self, url: str, body: dict[str, Any] | None) -> tuple[int, dict[str, str], bytes]:
        """Send one request; raises OSError for what passes, UserError for a certificate."""
        import requests

        # a proxy of the environment is not for this machine's own servers
        proxies: Any = {"http": None, "https": None} if _is_loopback(url) else None
        try:
            answer = self.session.request(
                "GET" if body is None else "POST",
                url,
                json=body,
                auth=self._authorise,
                proxies=proxies,
                timeout=(_CONNECT_SECONDS, _ALIVE_SECONDS if body is None else self.seconds),
                allow_redirects=False,
            )
        except requests.exceptions.SSLError as error:
            raise UserError(
                f"the certificate of {url} is not trusted: {first_line(error)}",
                hint="set REQUESTS_CA_BUNDLE to the file of your own authority's certificates",
            ) from error
        return answer.status_code, dict(answer.headers), answer.content

    def _authorise(self, request: Any) -> Any:  # noqa: ANN401 - requests' prepared request
        """Put the key into the header; being there keeps .netrc from being asked."""
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


def api_key(name: str) -> str | None:
    """Return the API key of the environment variable ``name``.

    Raises
    ------
    UserError
        When it cannot stand in a header; the message does not show it.
    """
    key = os.environ.get(name, "").strip()
    if key and not (key.isascii() and key.isprintable()):
        raise UserError(
            f"the environment variable {name} holds characters that no API key has",
            hint="set it to the key alone, one line",
        )
    return key or None


def same_for_all(urls: Sequence[str], facts: Sequence[Any]) -> None:
    """Refuse servers that are not alike: one fingerprint stands for all of them."""
    for url, other in zip(urls, facts, strict=True):
        if other != facts[0]:
            raise UserError(
                f"the servers are not alike: {urls[0]} is {facts[0]}, {url} is {other}",
                hint="start them the same way, or take one of them out",
            )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(headers: dict[str, str]) -> float:
    """Return what ``Retry-After`` says in seconds, 0 where it says nothing."""
    said = next((v for k, v in headers.items() if k.lower() == "retry-after"), "")
    return float(said) if said.isdecimal() else 0.0
