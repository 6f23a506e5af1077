"""Settings from the command line and the launchpad, and what `selectit select` leaves behind."""

from __future__ import annotations

import json

import pytest

from selectit_dagster.artefacts.home import Home
from selectit_dagster.cli.history_commands import _weights
from selectit_dagster.cli.select_command import select_experiment, select_records
from selectit_dagster.errors import UserError
from selectit_dagster.experiment import check_experiment
from selectit_dagster.orchestration.pipeline import Pipeline
from selectit_dagster.orchestration.stages.overrides import Overrides, apply_overrides


def experiment(path="data.json", models=("a/small", "a/large"), arms=None):
    """Two scoring models over one file."""
    named = [{"path": model} for model in models]
    made = select_experiment(dataset={"path": str(path)}, models=named, rating={}, selection={})
    if arms is None:
        return made
    return check_experiment({**made.model_dump(), "selection": {"arms": arms}}, source="a test")


def test_weights_size_and_rating_stand_in_for_those_of_the_file():
    given = Overrides(
        alpha=0.5, num_prompts=3, variant="released-code", thetas=(("large", 0.7),), threshold=1.5
    )
    changed = apply_overrides(experiment(), given)
    assert [model.theta for model in changed.scoring_models] == [None, 0.7]
    assert changed.selection.size == ("threshold", 1.5)
    assert (changed.rating.alpha, changed.rating.num_prompts) == (0.5, 3)
    assert changed.rating.variant == "released-code"
    assert apply_overrides(experiment(), Overrides()) == experiment()
    assert apply_overrides(changed, Overrides(count=4)).selection.size == ("count", 4)
    assert apply_overrides(changed, Overrides(tokens=900)).selection.size == ("tokens", 900)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (Overrides(alpha=-1.0), "rating.alpha: found -1.0"),
        (Overrides(alpha=float("inf")), "rating.alpha: found inf"),
        (Overrides(threshold=float("nan")), "selection.threshold: found nan"),
        (Overrides(num_prompts=0), "rating.num_prompts: found 0"),
        (Overrides(share=2.0), "selection.share: found 2.0"),
        (Overrides(share=0.1, count=4), "one of share, count, tokens, threshold"),
        (Overrides(thetas=(("huge", 1.0),)), "'huge', which is no scoring model"),
        (Overrides(thetas=(("small", 0.0),)), "theta: found 0.0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(given, message):
    with pytest.raises(UserError, match=message):
        apply_overrides(experiment(), given)


def test_weights_are_written_as_model_and_number():
    assert _weights(("small=7e9", "a=b=2")) == (("small", 7e9), ("a=b", 2.0))
    assert _weights(()) is None
    for text in ("small", "=", "small=much"):
        with pytest.raises(UserError, match="no weight of a model"):
            _weights((text,))


@pytest.mark.parametrize(
    ("arm", "given", "message", "hint"),
    [
        ("selectit", {"seed": 3}, "seed 3 was given for the arm selectit, which draws", "random-1"),
        ("random-1", {"model": "small"}, "model small was given for the arm random-1", "`ranking`"),
        ("ifd", {"model": "huge"}, "model huge was given for the arm ifd, and is", "small, large"),
    ],
)
def test_what_an_arm_has_no_use_for_is_refused(tmp_path, arm, given, message, hint):
    arms = [{"kind": "selectit"}, {"kind": "random", "seeds": [1]}, {"kind": "ifd"}]
    pipeline = Pipeline(experiment(arms=arms), Home(tmp_path, "home"))
    with pytest.raises(UserError, match=message) as caught:
        pipeline.selection_request(arm, Overrides(**given))
    assert hint in caught.value.hint
    assert pipeline.selection_request("random-1", Overrides(seed=3)).seed == 3
    assert pipeline.selection_request("ifd", Overrides(model="small")).model.name == "small"


def test_an_output_that_is_a_folder_is_refused_before_anything_is_read(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} is a folder") as caught:
        select_records(experiment(tmp_path / "absent.json"), tmp_path, None)
    assert caught.value.hint == "name a file with -o"


def test_rejected_records_are_left_beside_the_output_before_a_model_is_looked_for(tmp_path):
    source = tmp_path / "data.json"
    source.write_text(json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "c"}]))
    output = tmp_path / "out.json"
    with pytest.raises(UserError, match="1 of 2 records") as caught:
        select_records(experiment(source), output, None)
    rejected = tmp_path / "out.json.rejected.jsonl"
    assert str(rejected) in caught.value.hint
    assert [json.loads(line)["position"] for line in rejected.read_text().splitlines()] == [1]
    assert not output.exists()
