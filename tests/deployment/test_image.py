"""docker/Dockerfile against the project: stages, pins, user, and what is in the image."""

from __future__ import annotations

import re
import subprocess

import yaml
from deployed import ROOT

FINAL = ("cpu", "cuda")
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
_PINNED = re.compile(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}")
_EXACT = re.compile(
    r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[\w.+!-]+( ?;[^;]+?)?( --hash=sha256:[0-9a-f]{64})*"
)


def test_every_stage_has_a_name_and_every_base_is_pinned_or_a_stage(stages):
    assert len(re.findall(r"^FROM ", DOCKERFILE, re.MULTILINE)) == len(stages)
    for stage in stages.values():
        assert stage.name
        assert stage.base in stages or _PINNED.fullmatch(stage.base), stage.base


def test_the_images_of_others_are_pinned_by_digest(compose):
    for service in compose.services.values():
        if "build" not in service.raw:
            assert _PINNED.fullmatch(service.raw["image"])
        else:
            assert service.raw["build"]["target"] in FINAL
            assert (ROOT / service.raw["build"]["dockerfile"]).is_file()
            assert service.raw["build"]["context"] == ".."
            assert not service.raw["image"].endswith(":latest")


def test_whatever_is_installed_has_its_exact_version(stages):
    for stage in stages.values():
        for run in stage.arguments("RUN"):
            for package in re.findall(r"pip install (.*?)(?:&&|\|\||;|$)", run):
                words = [w for w in package.split() if not w.startswith("-")]
                for word in words:
                    named = word.strip('"') in ("$TORCH", "$lock") or word.startswith("/wheels/")
                    assert named or _EXACT.fullmatch(word), word
            assert "apt-get" not in run
    torch = re.search(r"^TORCH \?= (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1]
    arguments = [a for s in stages.values() for a in s.arguments("ARG") if a.startswith("TORCH=")]
    assert set(arguments) == {f"TORCH={torch}"}


def test_the_lock_files_of_the_image_exist(stages):
    for name in ("packages-cpu", "packages-cuda"):
        locks = next(a for a in stages[name].arguments("ARG") if a.startswith("LOCKS="))
        names = locks.partition("=")[2].strip('"').split()
        assert names[0] == "requirements.lock" and "requirements-postgres.lock" in names
        assert all((ROOT / lock).is_file() for lock in names)
    build = (ROOT / "docker" / "build-constraints.txt").read_text(encoding="utf-8").splitlines()
    assert all(_EXACT.fullmatch(line) for line in build if line and not line.startswith("#"))


def test_boto3_is_of_the_locked_botocores_release():
    storage = (ROOT / "requirements-s3.lock").read_text(encoding="utf-8")
    mlflow = (ROOT / "docker" / "mlflow-s3.lock").read_text(encoding="utf-8")
    release = re.search(r"^botocore==(\S+)", storage, re.MULTILINE)[1]
    assert f"boto3=={release}\n" in mlflow


def test_every_lock_file_holds_exact_versions():
    for path in (*ROOT.glob("requirements*.lock"), *ROOT.glob("docker/*.lock")):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        lines = [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
        assert found, path
        assert [line for line in found if not _EXACT.fullmatch(line)] == [], path


def test_the_integrations_are_of_dagsters_own_release():
    text = "\n".join(path.read_text("utf-8") for path in ROOT.glob("requirements*.lock"))
    core = re.search(r"^dagster==1\.(\d+)\.(\d+)\b", text, re.MULTILINE)
    for name in ("dagster-postgres", "dagster-k8s"):
        library = re.search(rf"^{name}==0\.(\d+)\.(\d+)\b", text, re.MULTILINE)
        # 1.N.P of the core goes with 0.(N + 16).P of the libraries
        assert (int(library[1]), library[2]) == (int(core[1]) + 16, core[2])


def test_the_final_images_run_as_an_ordinary_user_and_hold_no_compiler(stages):
    for name in FINAL:
        stage = stages[name]
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage.user)  # numbers: a cluster can check them
        for word in ("gcc", "g++", "build-essential", "clang", "make", "uv"):
            assert not any(re.search(rf"\b{re.escape(word)}\b", r) for r in stage.arguments("RUN"))
        copied = [c for c in stage.arguments("COPY") if c.startswith("--from")]
        packages = {"cpu": "packages-cpu", "cuda": "packages-cuda"}[name]
        assert copied == [f"--from={packages} /opt/selectit /opt/selectit"]
        assert "--without-pip" in " ".join(stages[packages].arguments("RUN"))
        assert stage.command[0] == "selectit"


def test_what_is_copied_exists_and_reaches_the_build(stages, tmp_path):
    sent = _sent_to_the_build()
    for stage in stages.values():
        for rest in stage.arguments("COPY"):
            *sources, _ = rest.split()
            if sources[0].startswith("--from="):
                assert sources[0].partition("=")[2] in stages
                continue
            for source in sources:
                assert any(path == source or path.startswith(source + "/") for path in sent) or [
                    path for path in sent if re.fullmatch(source.replace("*", "[^/]*"), path)
                ], source


def test_secrets_and_local_files_do_not_reach_the_build():
    sent = _sent_to_the_build()
    assert not [p for p in sent if ".env" in p or p.startswith((".git/", ".venv", ".selectit"))]
    assert not [p for p in sent if p.startswith(("tests/", "tools/"))]


def _sent_to_the_build() -> list[str]:
    """Return the tracked files that .dockerignore lets through (it names what is kept)."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in lines
    kept = [re.escape(line[1:]).replace(r"\*", "[^/]*") for line in lines if line.startswith("!")]
    files = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],  # noqa: S607
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [f for f in files if any(re.fullmatch(f"{k}(/.*)?", f) for k in kept)]


def test_the_packages_that_the_wheel_holds_are_copied(stages):
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    included = project["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = " ".join(stages["project"].arguments("COPY")).split()
    for name in included:
        assert name.rstrip("*") in copied
    assert project["project"]["readme"] in copied


def test_the_instance_lies_where_the_image_looks_for_it(stages):
    stage = stages["cpu"]
    home = stage.environment["DAGSTER_HOME"]
    assert stage.files[f"{home}/dagster.yaml"] == "docker/dagster.yaml"
    assert yaml.safe_load((ROOT / stage.files[f"{home}/workspace.yaml"]).read_text("utf-8"))
