"""The experiment file: what is accepted, and what each refusal says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selectit_dagster.errors import UserError
from selectit_dagster.experiment import Experiment, load_experiment, parse_experiment

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))


def minimal() -> dict:
    return {
        "name": "tiny",
        "dataset": {"path": "data.json"},
        "scoring_models": [{"name": "one", "path": "./model"}],
    }


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_experiment_is_valid(path):
    assert load_experiment(path).name


def test_the_default_names_every_key_that_an_experiment_may_have():
    text = (ROOT / "experiments" / "default.yaml").read_text(encoding="utf-8")

    def keys(model, prefix=""):
        for name, field in model.model_fields.items():
            yield name
            for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
                for leaf in [inner, *getattr(inner, "__args__", ())]:
                    if isinstance(leaf, type) and issubclass(leaf, Experiment.__mro__[1]):
                        yield from keys(leaf)

    optional = {"judge", "lm_eval_task", "allow_unsandboxed_code", "count", "threshold", "tokens"}
    missing = {k for k in keys(Experiment) if f"{k}:" not in text} - optional
    assert missing == set()


def test_the_paper_experiment_has_the_published_settings():
    paper = load_experiment(ROOT / "experiments" / "paper.yaml")
    assert [m.path for m in paper.scoring_models] == [
        "meta-llama/Llama-2-7b-hf",
        "meta-llama/Llama-2-13b-hf",
        "meta-llama/Llama-2-70b-hf",
    ]
    assert (paper.rating.num_prompts, paper.rating.num_ratings, paper.rating.alpha) == (5, 5, 0.2)
    assert paper.selection.size == ("share", 0.2)
    assert paper.tuning is not None
    tuning = paper.tuning
    assert (tuning.epochs, tuning.batch_size, tuning.learning_rate) == (3, 128, 2e-5)
    assert (tuning.schedule, tuning.warmup_ratio, tuning.max_length) == ("cosine", 0.03, 4096)
    assert len(tuning.seeds) == 3
    tasks = {b.task for b in paper.benchmarks}
    assert tasks == {"mmlu", "bbh", "gsm8k", "tydiqa", "humaneval", "alpaca-eval"}


def refused(value: dict) -> str:
    with pytest.raises(UserError) as caught:
        parse_experiment(value, source="my.yaml", folder=Path())
    return str(caught.value)


def test_a_misspelt_key_is_named_with_its_path_and_the_likely_key():
    text = refused({**minimal(), "rating": {"alfa": 0.3}})
    assert "my.yaml" in text
    assert "rating.alfa: unknown key; did you mean alpha?" in text


def test_a_misspelt_key_below_a_name_of_the_users_own_is_named_as_well():
    text = refused({**minimal(), "ray": {"models": {"mine": {"gpus": 1}}}})
    assert "ray.models.mine.gpus: unknown key; known keys: actors, " in text


def _nested(depth: int) -> list:
    value: list = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("written", "start"),
    [
        ("&all [*all]", "[["),
        # nine lists of nine lists and so on: half a million words, and there could be billions
        (
            "\n  - &a0 [x, x, x, x, x, x, x, x, x]"
            + "".join(f"\n  - &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 6)),
            "[['x', 'x', 'x', 'x', 'x', 'x', 'x', 'x', ...]",
        ),
        (f"0x{'f' * 9000}", "0xfff"),
        ("{" + "x" * 200 + ": 1}", "{'xxx"),
    ],
)
def test_a_value_without_end_is_shown_by_its_beginning(tmp_path, written, start):
    path = tmp_path / "a.yaml"
    path.write_text(f"{yaml.safe_dump(minimal())}description: {written}\n")
    with pytest.raises(UserError, match="1 thing to mend") as caught:
        load_experiment(path)
    assert f"description: found {start}" in caught.value.message
    assert len(caught.value.message) < len(str(path)) + 200


def test_a_value_of_any_depth_is_shown_by_its_beginning():
    assert "description: found [[[[" in refused({**minimal(), "description": _nested(50_000)})


def test_a_wrong_type_names_what_was_found_and_what_was_expected():
    text = refused({**minimal(), "rating": {"num_prompts": "many"}})
    assert "rating.num_prompts: found 'many', expected:" in text
    assert "integer" in text


def test_a_value_out_of_range_names_the_bound():
    text = refused({**minimal(), "selection": {"share": 1.5}})
    assert "selection.share: found 1.5" in text
    assert "less than or equal to 1" in text


def test_all_faults_are_listed_at_once():
    value = {**minimal(), "rating": {"alfa": 1, "num_ratings": 77}, "extra": 1}
    text = refused(value)
    assert "3 things to mend" in text


def test_a_missing_section_is_named():
    value = minimal()
    del value["dataset"]
    assert "dataset: missing" in refused(value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"selection": {"share": 0.1, "count": 5}}, "one of share, count, tokens, threshold"),
        (
            {"selection": {"arms": [{"kind": "full"}, {"kind": "full"}]}},
            "are called 'full'",
        ),
        ({"selection": {"arms": [{"kind": "ifd", "model": "none"}]}}, "'none'"),
        ({"dataset": {"path": "x", "layout": "columns"}}, "dataset.columns"),
        ({"tuning": {"base_model": {"path": "./m"}}}, "benchmark"),
        ({"schedule": {"cron": "weekly"}}, "five fields"),
        ({"schedule": {"cron": "60 * * * *"}}, "60 is no minute, which is 0 to 59"),
        ({"schedule": {"cron": "0 1,*-5 * * *"}}, "1,*-5 is no hour"),
        ({"schedule": {"cron": "0 0 * * jan"}}, "jan is no weekday"),
        ({"rating": {"layout": "record-first"}}, "remove this key"),
        ({"rating": {"adaptive": True, "num_prompts": 1}}, "num_prompts must be at least 2"),
    ],
)
def test_rules_between_keys_are_explained(change, message):
    assert message in refused({**minimal(), **change})


def test_lists_ranges_steps_and_names_are_cron():
    check = {"schedule": {"cron": "*/15 05-7,9 1 JAN-mar Mon,7"}}
    parse_experiment({**minimal(), **check}, source="test", folder=Path())


def test_a_file_that_is_not_yaml_names_line_and_column(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [1, 2\nother: {", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2.*column"):
        load_experiment(path)


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "42"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "list.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="mapping"):
        load_experiment(path)


def test_a_missing_file_names_itself(tmp_path):
    with pytest.raises(UserError, match=r"absent\.yaml"):
        load_experiment(tmp_path / "absent.yaml")


def test_yaml_cannot_make_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("name: !!python/object/apply:os.system ['true']\n", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        load_experiment(path)


def test_relative_paths_are_relative_to_the_file_and_hub_names_stay(tmp_path):
    (tmp_path / "data.json").write_text("[]", encoding="utf-8")
    value = minimal()
    value["scoring_models"].append({"name": "hub", "path": "owner/model"})
    experiment = parse_experiment(value, source="x", folder=tmp_path)
    assert experiment.dataset.path == str((tmp_path / "data.json").resolve())
    assert experiment.scoring_models[0].path == str((tmp_path / "model").resolve())
    assert experiment.scoring_models[1].path == "owner/model"


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["name", "dataset", "path", "rating", "arms", "selection", "x"]),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_any_yaml_ends_in_an_experiment_or_one_message(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(value), encoding="utf-8")
    try:
        load_experiment(path)
    except UserError as error:
        assert str(error)
