"""Programs that try to get out of the sandbox, to harm the machine, or to pass unearned.

Each is run like a generated answer. None may pass, and none may leave a trace: the watched
folder, this process, the loopback listener and the temporary folders are as before.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selectit_dagster.evaluation.sandbox import Verdict, run_program

SECRET = "a secret of this machine"  # noqa: S105 - what must not be read
# {victim} a file outside, {outside} its folder, {pid} the judging process, {port} a listener
FILES = {
    "a new file outside": "open('{outside}/new', 'w')",
    "an old file outside": "open('{victim}', 'a').write('x')",
    "removing a file": "import os; os.remove('{victim}')",
    "renaming a file": "import os; os.rename('{victim}', '{victim}2')",
    "a hard link to a file": "import os; os.link('{victim}', 'mine'); open('mine', 'w')",
    "through a symbolic link": "import os; os.symlink('{victim}', 'l'); open('l').read()",
    "through the parent folder": "open('../' * 20 + '{victim}'[1:]).read()",
    "a folder outside": "import os; os.mkdir('{outside}/folder')",
    "truncating a file": "import os; os.truncate('{victim}', 0)",
    "a mode": "import os; os.chmod('{victim}', 0)",
    "an owner": "import os; os.chown('{victim}', 1, 1)",
    "a time": "import os; os.utime('{victim}', (0, 0))",
    "reading a secret": "open('{victim}').read()",
    "listing a folder": "import os; os.listdir('{outside}')",
    "accounts": "open('/etc/passwd').read()",
    "a device": "open('/dev/kmsg').read(1)",
    "the disk": "import os; [open('/dev/' + n, 'rb') for n in ('vda', 'sda', 'mem')]",
    "shared memory": "open('/dev/shm/left-by-program', 'w')",
    "the temporary folder": "import os; open(os.getcwd() + '/../left-by-program', 'w')",
    "a huge file": "open('f', 'wb').write(b'x' * (4 << 20))",
    "a sparse file": "import os; os.truncate(os.open('f', os.O_CREAT | os.O_RDWR), 1 << 40)",
    "mounting": "import os; os.unshare(0x20000) if hasattr(os, 'unshare') else 1 / 0",
    "another root": "import os; os.chroot('.'); os.chroot('/')",
}
PROC = {
    "another process's environment": "open('/proc/1/environ').read()",
    "its own memory": "open('/proc/self/mem', 'rb').read(1)",
    "its own maps": "open('/proc/self/maps').read()",
    "its descriptors": "import os; os.listdir('/proc/self/fd')",
    "a setting of the kernel": "open('/proc/sys/kernel/core_pattern', 'w').write('x')",
    "the out-of-memory score": "open('/proc/self/oom_score_adj', 'w').write('-1000')",
}
NETWORK = {
    "a connection": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "a datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port}))",
    "a listener": "import socket; s = socket.socket(); s.bind(('', 0)); s.listen()",
    "a local socket": "import socket; socket.socket(socket.AF_UNIX)",
    "a socket pair": "import socket; socket.socketpair()",
    "a web page": "import urllib.request as u; u.urlopen('http://127.0.0.1:{port}', timeout=1)",
}
PROCESSES = {
    "a shell": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "a system call of the shell": "import os; assert os.system('true') == 0",
    "becoming a shell": "import os; os.execv('/bin/sh', ['sh', '-c', 'true'])",
    "becoming Python": "import os, sys; os.execv(sys.executable, ['python', '-c', 'pass'])",
    "a fork": "import os; os.fork()",
    "a fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "a spawned process": "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
    "multiprocessing": "import multiprocessing as m; p = m.Process(); p.start(); p.join()",
    "a thousand threads": "import threading, time\nfor _ in range(1000):\n"
    "    threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
    "killing the judge": "import os; os.kill({pid}, 9)",
    "killing everybody": "import os; os.kill(-1, 9)",
    "killing the group": "import os; os.killpg(0, 9)",
    # the stop may reach another thread first, so the program waits for it
    "stopping itself": "import os, time; os.kill(os.getpid(), 19); time.sleep(60)",
    "killing itself": "import os; os.kill(os.getpid(), 9)",
    "a priority": "import os; os.setpriority(os.PRIO_PROCESS, 0, -20)",
    "tracing": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0",
    "namespaces": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
}
RESOURCES = {
    "much memory": "x = bytearray(3 << 30)",
    "memory in small pieces": "x = []\nwhile True: x.append(bytes(1 << 20))",
    "an endless string": "x = 'x'\nwhile True: x += x",
    "a large number": "x = 10 ** 10 ** 10",
    "many files": "f = [open('/dev/null') for _ in range(200)]",
    "raised limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (r.RLIM_INFINITY,) * 2)",
    "an endless loop": "while True: pass",
    "an endless sleep": "import time; time.sleep(600)",
    "a pattern that explodes": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "deep recursion": "import sys; sys.setrecursionlimit(10 ** 9)\ndef f(): f()\nf()",
    "ignored signals": "import signal\nfor n in range(1, 32):\n"
    "    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
    "while True: pass",
    "much output": "import sys\nwhile True: sys.stdout.write('x' * 65536)",
    "a flooded verdict": "import os\nwhile True:\n    for fd in range(3, 32):\n"
    "        try: os.write(fd, b'x' * 4096 + b'\\n')\n        except OSError: pass",
}
_WRITE_ALL = (
    "import os\nfor fd in range(32):\n    try: os.write(fd, {text})\n"
    "    except OSError: pass\nos._exit(0)"
)
FORGED = {
    "leaving with success": "import os; os._exit(0)",
    "a system exit": "raise SystemExit(0)",
    "an exit from a thread": "import _thread; _thread.exit()",
    "a verdict without the nonce": _WRITE_ALL.format(text="b'passed\\n'"),
    "a guessed nonce": _WRITE_ALL.format(text="b'passed ' + b'0' * 32 + b'\\n'"),
    "a second report": _WRITE_ALL.format(text='b\'{{"layers": [], "missing": []}}\\npassed \\n\''),
    "the caller's frame": "import sys, os\nf = sys._getframe()\nwhile f.f_back: f = f.f_back\n"
    "os.write(f.f_locals['verdict'], b'passed ' + f.f_locals['nonce'].encode() + b'\\n')",
    "a traceback's frames": "import os\ntry: 1 / 0\nexcept Exception as e:\n"
    "    f = e.__traceback__.tb_frame.f_back\n"
    "    found = {{**f.f_locals, **f.f_globals}}\n"
    "    os.write(found['verdict'], found['nonce'])",
    "all frames": "import sys, os\nfor f in sys._current_frames().values():\n"
    "    for v in f.f_locals.values():\n"
    "        for fd in range(3, 32):\n"
    "            try: os.write(fd, str(v).encode() + b'\\n')\n            except OSError: pass\n"
    "os._exit(0)",
    "the garbage collector": "import gc, os\nfor o in gc.get_objects():\n"
    "    if isinstance(o, dict) and 'nonce' in o:\n"
    "        os.write(o['verdict'], o['nonce'])\nos._exit(0)",
    "the main module": "import __main__, os\n"
    "os.write(__main__.verdict, __main__.nonce)\nos._exit(0)",
    "a hook for errors": "import sys, os\n"
    "def hook(u):\n    steps = u.object.__reduce__()\n    os.write(3, str(steps).encode())\n"
    "    os._exit(0)\nsys.unraisablehook = hook\n1 / 0",
    "a hook for the main thread": "import sys, os, _thread, time\n"
    "def hook(kind, value, trace):\n    f = trace.tb_frame\n"
    "    os.write(4, str(f.f_locals).encode())\n    os._exit(0)\n"
    "sys.excepthook = hook\n_thread.interrupt_main()\ntime.sleep(1)\n1 / 0",
    "other built-ins": "import builtins, os\nbuiltins.BaseException = ()\n"
    "builtins.exec = lambda *a: None\nos.write = print\n1 / 0",
    "a tracing function": "import sys\nsys.settrace(lambda f, e, a: None)\n1 / 0",
    "ctypes from its classes": "c = object\nwhile True:\n"
    "    found = [k for k in c.__subclasses__() if k.__module__ == '_ctypes']\n"
    "    if found: break\n    raise LookupError\n",
    "memory through ctypes": "import ctypes, os\nctypes.string_at(id(os), 64)",
    "the job again": "import os\nfor fd in range(3, 32):\n"
    "    try: os.lseek(fd, 0, 0); print(os.read(fd, 99))\n    except OSError: continue\n"
    "raise LookupError",
    "code from bytes": "c = (lambda: 0).__code__\nc.replace(co_code=b'\\x00' * 4)\n1 / 0",
    "its own source": "open('/proc/self/cmdline').read()",
}
GROUPS = {
    "files": FILES, "/proc": PROC, "network": NETWORK, "processes and signals": PROCESSES,
    "memory, time and output": RESOURCES, "forged verdicts": FORGED,
}  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """What became of one attack."""

    group: str
    name: str
    verdict: Verdict
    effects: tuple[str, ...]

    @property
    def contained(self) -> bool:
        """Whether the program neither passed nor left a trace."""
        return not self.verdict.passed and not self.effects


class Watched:
    """A folder, a listener and this process, and what happened to them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.victim = folder / "victim"
        self.victim.write_text(SECRET, encoding="utf-8")
        self.victim.chmod(0o644)
        self.before = self._state()
        self.callers = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.listener.accept()[0].close()
                self.callers += 1

    def _state(self) -> tuple[object, ...]:
        stat = self.victim.stat()
        names = tuple(sorted(path.name for path in self.folder.iterdir()))
        text = self.victim.read_text("utf-8")
        return names, text, stat.st_mode, stat.st_uid, stat.st_mtime_ns, stat.st_nlink

    def effects(self) -> tuple[str, ...]:
        """Return what is not as it was."""
        found = []
        if self._state() != self.before:
            found.append("the watched folder changed")
        if self.callers:
            found.append("the listener was called")
        for place in (Path(tempfile.gettempdir()), Path("/dev/shm")):  # noqa: S108 - looked at
            if (place / "left-by-program").exists():
                found.append(f"a file was left in {place}")
        return tuple(found)


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Yield something to attack."""
    with tempfile.TemporaryDirectory(prefix="torture-victim-") as folder:
        found = Watched(Path(folder))
        try:
            yield found
        finally:
            found.listener.close()


def attempt(group: str, name: str, *, seconds: float = 1.5) -> Attempt:
    """Run one attack and return what became of it."""
    with watched() as place:
        program = GROUPS[group][name].format(
            victim=place.victim, outside=place.folder, pid=os.getpid(), port=place.port
        )
        verdict = run_program(program, seconds)
        return Attempt(group, name, verdict, place.effects())


def attempts() -> list[Attempt]:
    """Run every attack."""
    return [attempt(group, name) for group, programs in GROUPS.items() for name in programs]
