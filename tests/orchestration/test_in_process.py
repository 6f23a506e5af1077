"""What becomes of a Ctrl-C during a run in this process."""

from __future__ import annotations

import os
import signal

import pytest

from selectit_dagster.orchestration.in_process import no_interrupt_lost


class _Interrupted:
    """Interrupts the program while Python takes the object away, where nothing can be raised."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_ends_the_run_all_the_same():
    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        seen = []
        with pytest.raises(KeyboardInterrupt), no_interrupt_lost():
            _Interrupted()
            seen.append("the block went on")
        assert seen
        with no_interrupt_lost():
            seen.append("nothing came")
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen[1:] == ["nothing came"]
