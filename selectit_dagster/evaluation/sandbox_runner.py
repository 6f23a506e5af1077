"""The innermost side of the sandbox: a fresh, confined interpreter that runs one program.

Its text is given to ``python -c`` by ``sandbox_child.py``, so it imports nothing of this
project. Whether the program came to its end is told by a nonce, and the program, which shares
this process with it, must not find it. So

* the program's frame is the lowest of its thread: the thread runs ``exec`` from C, and no frame
  below it holds anything;
* the nonce is known only to a second piece of code, which the same C loop runs after the first
  one ended without an exception;
* no name, module or frame leads to that code, and the process ends at once when the program
  asks for what would: frames of other threads, the garbage collector, tracing, ``ctypes``, code
  made from bytes.
"""

import _thread
import collections
import json
import os
import sys
import threading  # noqa: F401 - loaded before the program, which may use threads
import time

_FORBIDDEN = (
    "sys._current_frames", "sys._current_exceptions", "sys.settrace",
    "sys.setprofile", "sys.addaudithook", "gc.get_objects", "gc.get_referrers",
    "gc.get_referents", "code.__new__", "cpython.run_command", "cpython.run_interactivehook",
)  # fmt: skip
_MODULES = ("ctypes", "_ctypes", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "cffi")


def _guard() -> None:
    """End the process at once when the program looks for what it must not find."""
    forbidden, modules, leave = frozenset(_FORBIDDEN), frozenset(_MODULES), os._exit

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in forbidden or event[:7] == "ctypes.":
            leave(4)
        if event == "import" and str(arguments[0]).partition(".")[0] in modules:
            leave(4)

    sys.addaudithook(hook)


def main() -> None:
    """Read the job, run its program in a thread, and wait until the process ends."""
    job_file, verdict = int(sys.argv[1]), int(sys.argv[2])
    with open(job_file, "rb") as handle:
        job = json.loads(handle.read())
    write, leave = os.write, os._exit

    def failed(error: object) -> None:
        kind = getattr(error, "exc_type", type(error)).__name__
        write(verdict, f"failed {kind}\n".encode())
        leave(0)

    sys.unraisablehook = failed
    write(verdict, json.dumps(job["report"]).encode() + b"\n")
    try:
        program = compile(job["program"], "<program>", "exec")
        begin = compile("release()", "<begin>", "exec")
        end = compile("write(verdict, nonce); leave(0)", "<end>", "exec")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        failed(error)
        return
    own = {"__name__": "program"}
    ours = {
        "write": write,
        "leave": leave,
        "verdict": verdict,
        "nonce": f"passed {job['nonce']}\n".encode(),
        "__builtins__": {},
    }
    # the thread is counted only from its first step on
    begun = _thread.allocate_lock()
    begun.acquire()
    first = {"release": begun.release, "__builtins__": {}}
    steps = map(exec, iter([begin, program, end]), iter([first, own, ours]))  # type: ignore[arg-type]
    del job, begin, program, end, first, ours, own
    sys.argv = [""]
    _guard()
    start, count, sleep = _thread.start_new_thread, _thread._count, time.sleep
    try:
        # a deque of no length runs all of the steps, in C
        start(collections.deque, (steps, 0))
        del steps
        begun.acquire()
        while count():
            sleep(0.005)
        # SystemExit ends a thread without a word
        write(verdict, b"failed SystemExit\n")
    finally:
        leave(0)


if __name__ == "__main__":
    main()
