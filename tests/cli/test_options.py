"""Options that are keys of an experiment file."""

from __future__ import annotations

import json
from typing import Any, Literal

import click
from click.testing import CliRunner
from pydantic import Field

from selectit_dagster.cli.options import keys_of
from selectit_dagster.experiment.section import Line, Section


class Tea(Section):
    """A section."""

    num_cups: int = Field(2, description="how many cups")
    kind: Literal["green", "black"] = Field("green", description="which leaves")
    name: Line | None = Field(None, description="whose it is; default: nobody's")


@click.command()
@keys_of(Tea, "-n/num_cups", "kind", "name")
def brew(**given: Any) -> None:
    click.echo(json.dumps(given))


def test_a_key_is_an_option_with_its_type_and_what_is_not_given_is_none():
    answer = CliRunner().invoke(brew, ["-n", "3", "--name", "Ann"])
    assert json.loads(answer.output) == {"num_cups": 3, "kind": None, "name": "Ann"}
    for wrong in (["--kind", "red"], ["--num-cups", "many"]):
        assert CliRunner().invoke(brew, wrong).exit_code == 2


def test_its_help_has_the_words_the_choices_and_the_default_of_the_key():
    text = CliRunner().invoke(brew, ["--help"]).output
    for words in ("How many cups [2].", "[green|black]", "Whose it is; default: nobody's."):
        assert words in text
