"""An HTTP server that answers like vLLM 0.32, from the log-probabilities of a real tiny model."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

_MODELS: dict[str, Any] = {}
_LOCK = threading.Lock()


def all_log_probabilities(folder: Path, row: list[int]) -> np.ndarray:
    """Return (vocabulary,) log-probabilities after a row, by the plain loop."""
    import torch
    from transformers import AutoModelForCausalLM

    with _LOCK, torch.inference_mode():
        if str(folder) not in _MODELS:
            _MODELS[str(folder)] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        logits = _MODELS[str(folder)](torch.tensor([row])).logits[0, -1]
        return torch.log_softmax(logits.double(), -1).numpy()


class FakeServer:
    """A server on loopback; its switches may be turned while it runs.

    ``version`` is what it calls itself; ``old`` ignores the named tokens; ``delay`` seconds
    pass before an answer; ``dies_after`` so many scored rows every connection is cut;
    ``busy`` is how many of the next requests get 503; ``poison`` rows that contain this token
    get 500; ``nan`` rows that contain this token get a NaN; ``cuts`` prompts to so many tokens;
    ``flicker`` loses every request that contains this token; ``key`` is asked for; with
    ``dtype`` None it does not say its configuration.
    """

    def __init__(self, folder: Path, **switches: Any) -> None:
        self.folder = folder
        self.name, self.version, self.context = "tiny", "0.32.0", 512
        self.dtype: str | None = "float32"
        self.old, self.delay, self.busy, self.busy_status = False, 0.0, 0, 503
        self.dies_after: int | None = None
        self.poison: int | None = None
        self.nan: int | None = None
        self.flicker: int | None = None
        self.cuts: int | None = None
        self.key: str | None = None
        self.dead = False
        self.redirect: str | None = None
        self.rows: list[tuple[int, ...]] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.in_flight = self.most_in_flight = 0
        self.lock = threading.Lock()
        for name, value in switches.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self) -> FakeServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

    # --- answers ------------------------------------------------------------------------------

    def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        if path == "/health":
            return 200, {}
        if path == "/version":
            return 200, {"version": self.version}
        if path == "/v1/models":
            return 200, {"data": [{"id": self.name, "max_model_len": self.context}]}
        if path.startswith("/server_info") and self.dtype is not None:
            config = {"dtype": f"torch.{self.dtype}", "quantization": None}
            info = {"vllm_config": {"model_config": config}}
            return (200, info | {"vllm_env": {"VLLM_BATCH_INVARIANT": False}})
        if path == "/v1/completions" and body is not None:
            return self.complete(body)
        return 404, {"detail": "Not Found"}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] != self.name:
            return 404, _error(f"The model `{body['model']}` does not exist.")
        rows = body["prompt"]
        if any(len(row) + body["max_tokens"] > self.context for row in rows):
            return 400, _error(f"This model's maximum context length is {self.context} tokens.")
        if self.poison is not None and any(self.poison in row for row in rows):
            return 500, _error("EngineCore encountered an issue.")
        with self.lock:
            self.rows += [tuple(row) for row in rows]
        choices = [self.choice(i, row[: self.cuts], body) for i, row in enumerate(rows)]
        read = sum(len(row[: self.cuts]) for row in rows)
        mark = f"vllm-{self.version}-0123abcd"
        more = {"system_fingerprint": mark, "usage": {"prompt_tokens": read}}
        return 200, {"choices": choices, **more}

    def choice(self, index: int, row: list[int], body: dict[str, Any]) -> dict[str, Any]:
        logs = all_log_probabilities(self.folder, row)
        best = np.argsort(-logs)[: body["logprobs"]]
        ids = [int(logs.argmax()), *(best if self.old else body["logprob_token_ids"])]
        top = {f"token_id:{int(i)}": float(np.float32(logs[i])) for i in ids}
        if self.nan is not None and self.nan in row:
            top = dict.fromkeys(top, float("nan"))
        return {"index": index, "text": "", "logprobs": {"top_logprobs": [top]}}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError"}}


def _handler(server: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.serve(None)

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.serve(json.loads(content))

        def serve(self, body: dict[str, Any] | None) -> None:
            rows = (body or {}).get("prompt", [])
            flickers = server.flicker is not None and any(server.flicker in r for r in rows)
            died = server.dies_after is not None and len(server.rows) >= server.dies_after
            server.dead = server.dead or died
            if server.dead or flickers:
                self.close_connection = True
                self.connection.close()
                return
            with server.lock:
                server.requests.append((self.path, dict(self.headers)))
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
                busy = body is not None and server.busy > 0
                server.busy -= busy
            time.sleep(server.delay)
            status, value = self.answer(body, busy=busy)
            with server.lock:
                server.in_flight -= 1
            content = json.dumps(value).encode()
            self.send_response(status)
            if server.redirect:
                self.send_header("Location", server.redirect)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def answer(self, body: dict[str, Any] | None, *, busy: bool) -> tuple[int, Any]:
            if server.key and self.headers["Authorization"] != f"Bearer {server.key}":
                return 401, {"error": f"Unauthorized: {self.headers['Authorization']}"}
            if server.redirect:
                return 307, {}
            if busy:
                return server.busy_status, _error("too many requests")
            return server.answer(self.path, body)

    return Handler


def main() -> None:
    """Serve a model folder on a port, for tests of servers that are started: FOLDER PORT."""
    import os
    import sys

    folder, port = Path(sys.argv[1]), int(sys.argv[2])
    fake = FakeServer(folder)
    fake.http.server_close()
    print("loading", os.environ.get("VLLM_API_KEY"), flush=True)  # noqa: T201
    fake.http = ThreadingHTTPServer(("127.0.0.1", port), _handler(fake))
    fake.http.serve_forever(0.02)


if __name__ == "__main__":
    main()
