"""The wheel in a stranger's places: one package of ours, whatever else is called assets there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from test_chain import write_world

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
_MINE = "raise RuntimeError('this is the stranger\\'s own')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's content in a folder, as an installation has it."""
    folder = tmp_path_factory.mktemp("wheel")
    argv = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*argv, "--wheel-dir", str(folder), str(ROOT)], check=True, cwd=folder)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _run(cwd: Path, wheel: Path, *argv: str, first: Path | None = None) -> str:
    path = [str(first)] if first else []
    done = subprocess.run(
        [sys.executable, *argv],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*path, str(wheel)]),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DAGSTER_DISABLE_TELEMETRY": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_installs_one_package_with_assets_and_experiments_inside(wheel):
    names = {path.name for path in wheel.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"selectit_dagster"}
    assert (wheel / "selectit_dagster" / "assets" / "ranking.py").is_file()
    assert (wheel / "selectit_dagster" / "experiments" / "default.yaml").is_file()


@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_run_beside_an_own_assets_package_or_module_uses_ours(
    wheel, kind, tmp_path, tiny_model_folder, second_tiny_model_folder
):
    path = write_world(tmp_path, [tiny_model_folder, second_tiny_model_folder])
    mine = tmp_path / ("assets/__init__.py" if kind == "package" else "assets.py")
    mine.parent.mkdir(exist_ok=True)
    mine.write_text(_MINE, encoding="utf-8")
    argv = ["-m", "selectit_dagster", "run", str(path), "--home", "home", "--upto"]
    answer = _run(tmp_path, wheel, *argv, "curated_dataset", "--json", first=tmp_path)
    assert len(json.loads(answer)["materialised"]) == 3


def test_a_dg_project_with_an_assets_folder_of_its_own_loads_both(wheel, tmp_path):
    package = tmp_path / "src" / "stranger"
    (package / "defs").mkdir(parents=True)
    (package / "__init__.py").touch()
    (tmp_path / "src" / "assets").mkdir()
    (tmp_path / "src" / "assets" / "__init__.py").write_text("MINE = 'own'\n", encoding="utf-8")
    (package / "definitions.py").write_text(
        "from pathlib import Path\nimport assets, dagster as dg\n"
        "@dg.asset(key=assets.MINE)\ndef own() -> None: ...\n"
        "@dg.definitions\ndef defs():\n"
        "    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
        "    return dg.Definitions.merge(dg.Definitions(assets=[own]), found)\n",
        encoding="utf-8",
    )
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "stranger"\nversion = "0.1.0"\n[tool.dg]\ndirectory_type = "project"\n'
        '[tool.dg.project]\nroot_module = "stranger"\n',
        encoding="utf-8",
    )
    dg = str(Path(sys.executable).with_name("dg"))
    source = tmp_path / "src"
    component = "selectit_dagster.SelectItComponent"
    _run(tmp_path, wheel, dg, "scaffold", "defs", component, "pick", first=source)
    listed = json.loads(_run(tmp_path, wheel, dg, "list", "defs", "--json", first=source))
    keys = {asset["asset_key"] for asset in listed["assets"]}
    assert {"own", "pick/raw_dataset", "pick/selected_dataset", "pick/production_dataset"} <= keys
    assert ".selectit/" in (tmp_path / ".gitignore").read_text(encoding="utf-8").splitlines()
