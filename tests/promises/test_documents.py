"""What the documents say is what the code and the tests are."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from selectit_dagster.errors import UserError
from tools import audit, errors, licences

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_errors_is_the_one_that_the_code_gives():
    """When this fails, run ``make errors`` and look at what changed."""
    assert errors.PAGE.read_text(encoding="utf-8") == errors.page(errors.entries())


def test_every_error_is_one_line_and_has_a_remedy():
    for entry in errors.entries():
        # a message from elsewhere is passed on; its own place has it
        assert len(entry.message) > 3, entry
        assert "\n" not in entry.message, entry
        assert len(entry.remedy) > 3, entry


def test_what_a_terminal_would_obey_is_made_visible_in_a_message():
    error = UserError("no \x1b]0;title\x07 \u202efile\udc80", hint="look\x9b2Jhere")
    assert str(error) == ("no \\x1b]0;title\\x07 \\u202efile\\udc80\n  hint: look\\x9b2Jhere")


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_pinned_package_has_its_hashes_and_torch_is_asked_for_alone(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=[a-zA-Z0-9])", re.sub(r"^#.*\n", "", text, flags=re.M))
    assert len(entries) > 10
    for entry in entries:
        assert re.match(r"[\w.-]+==[\w.!+]+( ; [^\\]+)? \\\n", entry), entry[:80]
        assert re.findall(r"--hash=sha256:[0-9a-f]{64}", entry), entry[:80]
    assert not any(entry.startswith("torch==") for entry in entries)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"--require-hashes --no-deps -r {name}" in makefile


def test_every_direct_dependency_is_pinned():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = {name.lower().replace("_", "-") for name in licences.names(ROOT / "requirements.lock")}
    wanted = {re.split(r"[<>=\[;]", line)[0].strip().lower() for line in project["dependencies"]}
    assert wanted - pinned == {"torch"}


def test_every_dependency_has_a_licence_that_may_be_combined_with_ours():
    found, _ = licences.rows()
    assert [row for row in found if not licences.compatible(row[2])] == []
    listed = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    names = licences.names(ROOT / "requirements.lock")
    assert [name for name in names if f"| {name} |" not in listed] == []


@pytest.mark.parametrize(
    ("licence", "fits"),
    [
        ("MIT", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GNU General Public License v3 (GPLv3)", False),
        ("AGPL-3.0-only", False),
        ("LGPL-2.1", True),
        ("GPL-2.0 OR MIT", True),
        ("Proprietary", False),
        ("", False),
    ],
)
def test_strong_copyleft_and_unknown_licences_are_refused(licence, fits):
    assert licences.compatible(licence) is fits


def test_a_vulnerability_is_named_unless_it_was_accepted(monkeypatch):
    entry = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
    report = {"dependencies": [{"name": "a", "version": "1.0", "vulns": [entry]}]}
    assert audit.found(report) == ["a 1.0: PYSEC-1, fixed in 2.0"]
    monkeypatch.setitem(audit.ACCEPTED, "CVE-1", "it is not used here")
    assert audit.found(report) == []


def test_every_promise_names_tests_that_exist():
    text = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Promises")[1].split("\n## ")[0]
    promises = re.findall(r"^(\d+)\. ", section, flags=re.M)
    assert promises == [str(n) for n in range(1, 11)]
    assert re.findall(r"^## (\d+)\. ", text, flags=re.M) == promises
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 30
    for path, function in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        functions = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert not function or function in functions, (path, function)
