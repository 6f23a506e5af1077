"""The queue of addresses, with time and transport played: retries, rests, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from selectit_dagster.errors import PassingError, UserError
from selectit_dagster.experiment import ServerSection
from selectit_dagster.inference.backends.protocol import TokenBatch
from selectit_dagster.inference.backends.server_client import (
    RowsRefusedError,
    ServerClient,
    ServerLostError,
)
from selectit_dagster.inference.backends.server_kind import WrongServerError
from selectit_dagster.registry import SERVERS

Answer = tuple[int, dict[str, str], bytes] | OSError


class Played:
    """A transport that follows a script per address, and a clock that only sleeping moves."""

    def __init__(self, **script: list[Answer]) -> None:
        self.script, self.now = script, 0.0
        self.asked: list[tuple[float, str]] = []
        self.slept: list[float] = []

    def __call__(self, url: str, body: dict[str, Any] | None) -> Answer:
        host = url.split("/")[2]
        self.asked.append((self.now, url))
        if body is None and url.endswith("/health"):
            found = self.script.get(f"{host}_health", [(503, {}, b"")])
        else:
            found = self.script[host]
        answer = found.pop(0) if len(found) > 1 else found[0]
        if isinstance(answer, OSError):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def client(self, **more: Any) -> ServerClient:
        hosts = [name for name in self.script if not name.endswith("_health")]
        section = ServerSection(url=[f"http://{host}" for host in hosts], **more)
        return ServerClient(section, transport=self, clock=lambda: self.now, sleep=self.sleep)


def said(status: int = 200, value: Any = None, **headers: str) -> Answer:
    return status, headers, json.dumps(value).encode()


LOST = ConnectionResetError("reset by peer")


@pytest.mark.parametrize("passing", [LOST, said(429), said(503), said(502), TimeoutError("slow")])
def test_what_passes_is_asked_again_after_a_rest_that_doubles(passing: Answer) -> None:
    played = Played(a=[passing] * 4 + [said(value="yes")])
    assert played.client().ask("/x", {}) == "yes"
    assert played.slept == [0.5, 1.0, 2.0, 4.0]


def test_a_server_that_names_a_time_is_given_it() -> None:
    played = Played(a=[said(429, **{"Retry-After": "7"}), said(value=1)])
    played.client().ask("/x", {})
    assert played.slept == [7.0]


def test_the_other_address_takes_over_at_once() -> None:
    played = Played(a=[LOST], b=[said(value="b")])
    client = played.client()
    assert [client.ask("/x", {}) for _ in range(5)] == ["b"] * 5
    assert not played.slept


def test_when_no_address_answers_for_long_it_ends_as_what_may_be_tried_again() -> None:
    played = Played(a=[LOST], b=[said(503, {"error": "loading"})])
    with pytest.raises(ServerLostError, match=r"for 60 s .*reset by peer.*503: loading"):
        played.client(patience_seconds=60).ask("/x", {})
    assert 60 < played.now < 120


def test_a_request_with_which_a_healthy_server_is_lost_is_to_blame_itself() -> None:
    played = Played(a=[LOST], a_health=[said()])
    with pytest.raises(RowsRefusedError, match="lost 3 times with this request"):
        played.client().ask("/x", {})


@pytest.mark.parametrize(
    ("answer", "words", "hint"),
    [
        (said(401, {"error": "Unauthorized"}), "401: Unauthorized", "VLLM_API_KEY: it is not set"),
        (said(404, {"detail": "Not Found"}), "404: Not Found", "server.kind"),
        (said(302), "302", "redirects are not followed"),
        ((200, {}, b"<html>hello"), "did not answer with JSON: <html>hello", "itself"),
    ],
)
def test_what_no_retry_mends_is_told_once(answer: Answer, words: str, hint: str) -> None:
    played = Played(a=[answer])
    with pytest.raises(UserError, match=words) as found:
        played.client().ask("/x", {})
    assert hint in found.value.hint and len(played.asked) == 1


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_what_rows_may_be_to_blame_for_is_not_asked_again_whole(status: int) -> None:
    error = {"error": {"message": "maximum context\nlength is 9", "code": status}}
    played = Played(a=[said(status, error)])
    with pytest.raises(RowsRefusedError, match=f"{status}: maximum context length is 9"):
        played.client().ask("/x", {})


def test_a_key_that_cannot_be_one_is_refused_without_being_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "line-one\nline-two")
    with pytest.raises(UserError) as found:
        Played(a=[said()]).client()
    assert "line-one" not in str(found.value) and "VLLM_API_KEY" in str(found.value)


def test_a_certificate_that_is_not_trusted_and_a_proxy_are_as_requests_does_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import requests

    seen: list[dict[str, Any]] = []

    def refuse(*_: object, **options: Any) -> None:
        seen.append(options)
        raise requests.exceptions.SSLError("self-signed certificate")

    monkeypatch.setattr(requests.Session, "request", refuse)
    for url, proxies in (
        ("https://far", None),
        ("http://localhost:1", {"http": None, "https": None}),
    ):
        client = ServerClient(ServerSection(url=url))
        with pytest.raises(UserError, match=r"certificate .* is not trusted") as found:
            client.ask("/x", {})
        assert "REQUESTS_CA_BUNDLE" in found.value.hint
        assert seen[-1]["proxies"] == proxies and seen[-1]["allow_redirects"] is False


# --- SGLang, against its documentation ------------------------------------------------------------


def sglang(answers: Callable[[str, Any], Any]) -> Any:
    asked: list[tuple[str, Any]] = []

    def ask(path: str, body: dict[str, Any] | None = None) -> Any:
        asked.append((path, body))
        found = answers(path, body)
        if isinstance(found, Exception):
            raise found
        return found

    return SERVERS.kinds()["sglang"](), ask, asked


def test_sglang_gets_the_prefix_as_query_and_gives_probabilities() -> None:
    def answers(path: str, body: Any) -> Any:
        if path == "/v1/models":
            return {"data": [{"id": "m", "max_model_len": 512}]}
        if path == "/get_server_info":
            return {"version": "0.5.4", "dtype": "bfloat16", "max_req_input_len": 500}
        return {"scores": [[0.5, 0.0, 0.25]] * len(body["items"])}

    kind, ask, asked = sglang(answers)
    facts = kind.facts(ask, None)
    assert (facts.version, facts.model, facts.longest) == ("0.5.4", "m", 500)
    assert (facts.dtype, facts.quantization) == ("bfloat16", "None")
    rows = tuple(np.array(row, dtype=np.int32) for row in ([3, 4], [5]))
    found = kind.score(ask, "m", TokenBatch(np.array([1, 2], dtype=np.int32), rows), (7, 8, 9))
    np.testing.assert_allclose(np.exp(found), [[0.5, 0, 0.25]] * 2, atol=1e-6)
    body = asked[-1][1]
    assert (body["query"], body["items"]) == ([1, 2], [[3, 4], [5]])
    assert body["label_token_ids"] == [7, 8, 9] and body["apply_softmax"] is False
    kind.score(ask, "m", TokenBatch(np.array([], dtype=np.int32), rows[:1]), (7, 8, 9))
    assert (asked[-1][1]["query"], asked[-1][1]["items"]) == ([3], [[4]])


def test_sglang_without_scores_or_with_a_delimiter_is_refused() -> None:
    models = {"data": [{"id": "m"}]}
    kind, ask, _ = sglang(lambda path, _: models if "models" in path else {"object": "error"})
    with pytest.raises(WrongServerError, match="does not answer /v1/score with scores"):
        kind.facts(ask, None)
    delimited = {"multi_item_scoring_delimiter": 151655}
    kind, ask, _ = sglang(lambda path, _: models if "models" in path else delimited)
    with pytest.raises(WrongServerError, match="multi-item mode"):
        kind.facts(ask, None)
    kind, ask, _ = sglang(lambda *_: PassingError("away"))
    with pytest.raises(PassingError):
        kind.facts(ask, None)
