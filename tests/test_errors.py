"""Errors of other libraries, told in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from selectit_dagster.errors import UserError, first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("\n  what is wrong\nand more"), "what is wrong"),
        (AssertionError(), "AssertionError"),
        (OSError(" \n"), "OSError"),
        (ValueError("x" * 1000), "x" * 300),
    ],
)
def test_an_error_is_one_line_even_when_it_says_nothing(error: Exception, said: str) -> None:
    assert first_line(error) == said


def test_a_library_that_fails_without_a_word_is_a_message_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from selectit_dagster.data.arrow_reader import open_typed
    from selectit_dagster.experiment import DatasetSection

    def fails(path: str) -> None:
        raise AssertionError

    monkeypatch.setattr(datasets, "load_from_disk", fails)
    with pytest.raises(UserError, match="cannot be loaded: AssertionError"):
        open_typed(DatasetSection(path=str(tmp_path)), "datasets", None)
