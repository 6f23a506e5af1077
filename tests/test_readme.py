"""The README says what is there: its commands, options, targets, files and pictures exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from selectit_dagster.cli.main import cli

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"selectit ([a-z]+)\b", README)) & set(cli.commands))


def test_every_command_of_the_tool_is_in_the_readme():
    assert set(cli.commands) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(name):
    answer = CliRunner().invoke(cli, [name, "--help"])
    assert answer.exit_code == 0
    assert "Example" in answer.output
    assert f"selectit {name}" in answer.output


def test_every_option_in_the_readme_exists():
    known = {
        option
        for command in cli.commands.values()
        for parameter in command.params
        for option in parameter.opts
    }
    used = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", README))
    assert used <= known | {"--help"}


def test_every_make_target_in_the_readme_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) - {"test-"} <= targets


def test_every_file_and_picture_in_the_readme_exists():
    named = re.findall(r"`((?:experiments|selectit_dagster|docs)/[\w./-]+)`", README)
    named += re.findall(r"\]\(((?!http)[^)]+)\)", README)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_complete_example_is_the_help_of_run():
    answer = CliRunner().invoke(cli, ["run", "--help"])
    example = (ROOT / "experiments" / "default.yaml").read_text(encoding="utf-8")
    squeeze = re.compile(r"\s+")
    assert squeeze.sub(" ", example) in squeeze.sub(" ", answer.output)
