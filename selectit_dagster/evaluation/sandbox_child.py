"""The inner side of the sandbox: a script that confines itself and then becomes the runner.

Started as ``python -I -S -B sandbox_child.py VERDICT_FD`` with a JSON job on its standard
input; it uses the standard library alone. The layers, from the outside in:

* resource limits: CPU time, memory, file size, open files, processes, core files;
* namespaces: users, network (an empty one), IPC and processes;
* Landlock: Python's own files may be read, one temporary folder written, nothing else;
* seccomp: no new processes, no sockets, no changes of modes or owners (which Landlock does
  not see), no mounts, no tracing.

It refuses to go on when one is missing and the job does not allow that. Then it becomes a fresh
interpreter (``sandbox_runner.py``), which holds nothing of what the confining needed: a program
with ``ctypes`` at hand could read any memory. The filter allows that one ``execve`` by the
address of its path, which no later program can have. The program ends well only if the job's
nonce comes back: an exit status could be forged by the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable
from typing import Any

_CLONE = {"ipc": 0x08000000, "user": 0x10000000, "pid": 0x20000000, "network": 0x40000000}
_NO_NEW_PRIVILEGES, _DEATH_SIGNAL, _SECCOMP, _FILTER = 38, 1, 22, 2
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ, _READ_FOLDER, _EXECUTE = 1 << 2, 1 << 3, 1 << 0
# how many kinds of file access each Landlock version knows
_ACCESS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}
_NEWEST_ACCESS_BITS = 16
_FILE_ACCESS = 0b1100000000000111
_DENY, _ALLOW, _KILL = 0x00050000 | 1, 0x7FFF0000, 0x80000000
_NO_SUCH_CALL = 0x00050000 | 38
_THREAD_FLAG = 0x00010000

# system calls that a program under test has no use for, by architecture: processes; sockets;
# modes, owners, times and attributes; mounts and roots; tracing and kernel interfaces
_ARCHITECTURES: dict[str, tuple[int, int, int, int, tuple[int, ...]]] = {
    # audit name, clone, clone3, execve, denied
    "x86_64": (
        0xC000003E,
        56,
        435,
        59,
        (
            *(57, 58, 322),
            *(41, 42, 43, 44, 46, 49, 50, 53, 288, 299, 307),
            *(90, 91, 92, 93, 94, 132, 188, 189, 190, 197, 198, 199, 235, 260, 261, 268, 280),
            *(452, 463, 466),
            *(155, 161, 165, 166, 272, 308, 428, 429, 430, 431, 432, 433, 442),
            *(101, 135, 175, 176, 246, 248, 249, 250, 298, 304, 310, 311, 313, 320, 321, 323),
            *(425, 426, 427, 434, 438, 440, 424),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        435,
        221,
        (
            *(281,),
            *(198, 199, 200, 201, 202, 203, 206, 211, 242, 243, 269),
            *(5, 6, 7, 14, 15, 16, 52, 53, 54, 55, 88, 452, 463, 466),
            *(39, 40, 41, 51, 97, 268, 428, 429, 430, 431, 432, 433, 442),
            *(92, 104, 105, 106, 117, 217, 218, 219, 241, 265, 270, 271, 273, 280, 282, 294),
            *(425, 426, 427, 434, 438, 440, 424),
        ),
    ),
}

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: Any) -> int:  # noqa: ANN401 - C arguments
    """Call a C function that returns -1 on failure."""
    result = int(getattr(_libc, name)(*arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result


def _system_call(number: int, *arguments: Any) -> int:  # noqa: ANN401 - C arguments
    return _call("syscall", ctypes.c_long(number), *arguments)


def limit_resources(limits: dict[str, int]) -> None:
    """Set soft and hard limits; what is set cannot be raised again."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def leave_namespaces() -> None:
    """Enter new user, network, IPC and process namespaces; the next fork is process 1."""
    user, group = os.geteuid(), os.getegid()
    _call("unshare", ctypes.c_int(sum(_CLONE.values())))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"65534 {user} 1"),
        ("gid_map", f"65534 {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as handle:  # noqa: PTH123
            handle.write(text)


def lock_files(readable: list[str], writable: str) -> None:
    """Allow reading below ``readable`` and everything below ``writable``, with Landlock."""
    version = _system_call(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    every = (1 << _ACCESS_BITS.get(version, _NEWEST_ACCESS_BITS)) - 1
    # newer versions also close TCP, abstract sockets and signals
    attributes = struct.pack("=Q", every)
    if version >= 4:
        attributes += struct.pack("=Q", 0b11)
    if version >= 6:
        attributes += struct.pack("=Q", 0b11)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    rules = _system_call(
        _LANDLOCK_CREATE, buffer, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0)
    )
    read = _READ | _READ_FOLDER | _EXECUTE
    for path, access in [*((path, read) for path in readable), (writable, every & ~_EXECUTE)]:
        _allow(rules, path, access & every)
    _forbid_new_privileges()
    _system_call(_LANDLOCK_RESTRICT, ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)


def _allow(rules: int, path: str, access: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):  # noqa: PTH112 - no pathlib in here, it is slow to import
            access &= _FILE_ACCESS
        rule = ctypes.create_string_buffer(struct.pack("=Qi", access, handle), 12)
        _system_call(_LANDLOCK_ADD, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    finally:
        os.close(handle)


def _forbid_new_privileges() -> None:
    _call("prctl", _NO_NEW_PRIVILEGES, *map(ctypes.c_ulong, (1, 0, 0, 0)))


def filter_calls(runner: int) -> None:
    """Install the seccomp filter; the calls of other architectures kill the process.

    ``runner`` is the address of the only path that may be executed.
    """
    audit, clone, clone3, execve, denied = _ARCHITECTURES[platform.machine()]

    def jump(code: int, value: int, yes: int, no: int) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    filters = [
        jump(load, 4, 0, 0),
        jump(equal, audit, 1, 0),
        jump(give, _KILL, 0, 0),
        jump(load, 0, 0, 0),
        # calls of the x32 mode have this bit set
        jump(at_least, 0x40000000, 0, 1),
        jump(give, _DENY, 0, 0),
        # the C library falls back from clone3 to clone, whose flags can be looked at
        jump(equal, clone3, 0, 1),
        jump(give, _NO_SUCH_CALL, 0, 0),
    ]
    for number in denied:
        filters += [jump(equal, number, 0, 1), jump(give, _DENY, 0, 0)]
    filters += [
        jump(equal, execve, 0, 6),
        jump(load, 16, 0, 0),
        jump(equal, runner & 0xFFFFFFFF, 0, 3),
        jump(load, 20, 0, 0),
        jump(equal, runner >> 32, 0, 1),
        jump(give, _ALLOW, 0, 0),
        jump(give, _DENY, 0, 0),
        jump(equal, clone, 0, 3),
        jump(load, 16, 0, 0),
        # threads are bounded by memory and the process limit; processes are not allowed
        jump(any_bit, _THREAD_FLAG, 1, 0),
        jump(give, _DENY, 0, 0),
        jump(give, _ALLOW, 0, 0),
    ]
    code = ctypes.create_string_buffer(b"".join(filters), 8 * len(filters))
    program = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code)), 16
    )
    _forbid_new_privileges()
    _call("prctl", _SECCOMP, ctypes.c_ulong(_FILTER), program, *map(ctypes.c_ulong, (0, 0)))


def _attempt(name: str, action: Callable[[], None], layers: list[str], missing: list[str]) -> None:
    try:
        action()
    except (OSError, KeyError, ValueError) as error:
        missing.append(f"{name} ({error})")
    else:
        layers.append(name)


def _become_child() -> None:
    """Fork; the parent waits and goes with its child, the child goes with its parent."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    _call("prctl", _DEATH_SIGNAL, *map(ctypes.c_ulong, (signal.SIGKILL, 0, 0, 0)))


def _hand_over(job: dict[str, Any]) -> int:
    """Return a descriptor from which the runner reads the job; it lies in memory alone."""
    handle = os.memfd_create("job", 0)
    os.write(handle, json.dumps(job).encode())
    os.lseek(handle, 0, os.SEEK_SET)
    return handle


def _become_runner(path: ctypes.Array[ctypes.c_char], arguments: list[str]) -> None:
    """Replace this process by the runner's interpreter, with an empty environment."""
    words = (ctypes.c_char_p * (len(arguments) + 1))(*(a.encode() for a in arguments), None)
    _call("execve", path, words, (ctypes.c_char_p * 1)(None))


def main() -> None:
    """Confine this process and become the runner of the job's program."""
    verdict = int(sys.argv[1])
    job: dict[str, Any] = json.loads(sys.stdin.buffer.read())
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    layers: list[str] = []
    missing: list[str] = []
    report = {"layers": layers, "missing": missing}
    _attempt("namespaces", leave_namespaces, layers, missing)
    # twice: process 1 of the namespace would be deaf to most signals
    _become_child()
    _become_child()
    os.chdir(job["folder"])
    handed: dict[str, Any] = {"program": job["program"], "nonce": job["nonce"], "report": report}
    python = ctypes.create_string_buffer(job["python"].encode())
    # what is handed over may be longer than a file of the program may be
    sizes = {name: value for name, value in job["limits"].items() if name != "FSIZE"}
    _attempt("rlimits", lambda: limit_resources(sizes), layers, missing)
    _attempt("landlock", lambda: lock_files(job["readable"], job["folder"]), layers, missing)
    _attempt("seccomp", lambda: filter_calls(ctypes.addressof(python)), layers, missing)
    if missing and not job["anyway"]:
        os.write(verdict, json.dumps(report).encode() + b"\n")
        os._exit(3)
    handle = _hand_over(handed)
    limit_resources({"FSIZE": job["limits"]["FSIZE"]})
    os.set_inheritable(handle, True)
    os.set_inheritable(verdict, True)
    options = ["-I", "-S", "-B", "-c", job["runner"]]
    _become_runner(python, [job["python"], *options, str(handle), str(verdict)])


if __name__ == "__main__":
    main()
