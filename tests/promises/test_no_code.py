"""Promise 6: nothing executes code from data or models."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import load_experiment

ROOT = Path(__file__).resolve().parents[2]
_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
_CALLS = {"eval", "exec", "compile", "__import__"}
# the sandbox runs generated programs: that is its purpose; see test_sandbox_attacks
_MAY_RUN = {"selectit_dagster/evaluation/sandbox_runner.py"}
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _sources():
    for folder in ("selectit_dagster", "assets"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def test_the_source_opens_no_pickle_and_evaluates_no_text():
    found = []
    for name, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] + [getattr(node, "module", "") or ""]
                found += [f"{name}: {n}" for n in names if n.split(".")[0] in _MODULES]
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in _CALLS and name not in _MAY_RUN:
                found.append(f"{name}:{node.lineno} {called}")
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if called.endswith("torch.load") and keywords.get("weights_only") != "True":
                found.append(f"{name}:{node.lineno} {called}")
            if called in {"yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"}:
                found.append(f"{name}:{node.lineno} {called}")
            if keywords.get("shell") == "True" or called in {"os.system", "os.popen"}:
                found.append(f"{name}:{node.lineno} {called}")
            if keywords.get("allow_pickle") == "True":
                found.append(f"{name}:{node.lineno} {called}")
            trusted = keywords.get("trust_remote_code", "reference.trust_remote_code")
            if trusted != "reference.trust_remote_code":
                found.append(f"{name}:{node.lineno} trust_remote_code={trusted}")
    assert found == []


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
    from selectit_dagster.orchestration.run import run_experiment
    from tools.torture.world import write_world

    path = write_world(tmp_path)
    run_experiment(path, tmp_path / "home", upto="report")
    assert (tmp_path / "home" / "dagster" / "history" / "runs.db").exists()
    assert pickles_in(tmp_path / "home") == []
    assert not _values_in_storage(tmp_path / "home" / "dagster" / "storage")


def _values_in_storage(storage: Path) -> list[str]:
    """Return what lies in Dagster's storage beside the output that steps printed."""
    return [p.name for p in storage.rglob("*") if p.is_file() and p.parent.name != "compute_logs"]


def test_every_asset_passes_files_and_no_values(tmp_path):
    """An asset that returned a value would have it pickled by Dagster's IO manager."""
    from selectit_dagster.definitions import build_defs
    from tools.torture.world import write_world

    path = write_world(tmp_path)
    definitions = build_defs(experiment_file=path, home=tmp_path / "home")
    assert len(definitions.resolve_asset_graph().get_all_asset_keys()) > 8
    for name, tree in _sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(
                "dg.asset(" in ast.unparse(d) for d in node.decorator_list
            ):
                # a result without a value: Dagster's IO manager has nothing to store
                assert ast.unparse(node.returns) == "dg.MaterializeResult", (name, node.name)
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Call) and "MaterializeResult" in ast.unparse(
                        inner.func
                    ):
                        assert not any(k.arg == "value" for k in inner.keywords), name


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
