"""Promise 6: nothing executes code from data or models."""

from __future__ import annotations

from pathlib import Path

import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import load_experiment

ROOT = Path(__file__).resolve().parents[2]
# the sandbox runs generated programs: that is its purpose; see test_sandbox_attacks
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def test_code_of_a_model_is_not_trusted_unless_the_file_says_so():
    from selectit_dagster.experiment import ModelReference

    assert ModelReference(path="x").trust_remote_code is False


def pickles_in(folder: Path) -> list[str]:
    """Return the files that begin like a pickle, or are an archive with one inside."""
    import zipfile

    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as handle:
            head = handle.read(2)
        packed = zipfile.is_zipfile(path) and any(
            name.endswith(".pkl") for name in zipfile.ZipFile(path).namelist()
        )
        if head in _PICKLES or packed or path.suffix in {".pkl", ".pickle", ".joblib"}:
            found.append(path.relative_to(folder).as_posix())
    return found


@pytest.mark.slow
def test_a_home_holds_no_pickle(tmp_path):
    """Dagster's storage is looked at too: an IO manager would write pickles there."""
    from selectit_dagster.launch.run import run_experiment
    from tools.torture.world import write_world

    path = write_world(tmp_path)
    run_experiment(path, tmp_path / "home", upto="report")
    assert (tmp_path / "home" / "dagster" / "history" / "runs.db").exists()
    assert pickles_in(tmp_path / "home") == []
    assert not _values_in_storage(tmp_path / "home" / "dagster" / "storage")


def _values_in_storage(storage: Path) -> list[str]:
    """Return what lies in Dagster's storage beside the output that steps printed."""
    return [p.name for p in storage.rglob("*") if p.is_file() and p.parent.name != "compute_logs"]


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['true']",
        "name: !!python/name:os.system",
        "name: !!python/object/new:type [x, [], {}]",
        "&a [*a]",
        "a: &x {b: *x}",
        "- " * 5000 + "x",
        "{" * 100_000,
        "[" * 100_000,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        + "".join(
            f"{chr(99 + i)}: &{chr(99 + i)} [{','.join(['*' + chr(98 + i)] * 9)}]\n"
            for i in range(8)
        ),
        "name: x\nname: y",
        "\x00",
        "name: \ud800".encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
    ],
)
def test_yaml_that_asks_for_objects_is_refused(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load_experiment(path)
