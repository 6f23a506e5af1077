"""The shipped base models: form, tokens, rebuilding, and whether they can rate."""

# ruff: noqa: S311 - draws that can be repeated, not secrets

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from selectit_dagster.cli.select_command import select_experiment, select_records
from tools.miniature import build, judge, pretrain
from tools.miniature.batches import RECIPES, Leg
from tools.miniature.corpus import alpaca_prompt, document, rating_guides
from tools.miniature.growth import grow

pytestmark = pytest.mark.slow  # what made the miniature world is a tool, no part of the package

MODELS = build.DATA.parent / "models"
LAYOUT = "{guide}\n\nInstruction:{record}\nResponse:{response}\nThe answer is: \n"


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MODELS / "small")


@pytest.mark.parametrize(("name", "millions"), [("small", 0.5), ("large", 2.0)])
def test_models_load_from_their_folder_and_have_the_promised_size(name: str, millions: float):
    model = AutoModelForCausalLM.from_pretrained(MODELS / name)
    record = json.loads((MODELS / name / "training.json").read_text())
    count = sum(p.numel() for p in model.parameters())
    assert count == record["parameters"] == pytest.approx(millions * 1e6, rel=0.15)
    assert model.config.model_type == "llama"
    assert record["steps_done"] == RECIPES[name].steps


def test_weights_take_at_most_twelve_megabytes():
    assert sum(p.stat().st_size for p in MODELS.rglob("*") if p.is_file()) <= 12e6


def test_cards_say_what_the_figures_mean_and_how_the_model_was_made():
    for name in RECIPES:
        card = (MODELS / name / "README.md").read_text(encoding="utf-8")
        assert card.startswith("---\nlicense:")
        plain = " ".join(card.replace("*", "").split())
        assert "figures say nothing about real language models" in plain
        assert "loss weight of rating digits" in plain
        assert "bit for bit" in plain


def test_every_rating_is_one_token_in_its_place_and_decodes_to_its_digit(tokenizer):
    for guide in rating_guides():
        prompt = LAYOUT.format(guide=guide, record="What is 2+2?", response="4")
        start = tokenizer(prompt).input_ids
        ids = [tokenizer(prompt + digit).input_ids for digit in "12345"]
        assert all(whole[:-1] == start for whole in ids)
        assert len({whole[-1] for whole in ids}) == 5
        assert [tokenizer.decode([whole[-1]]) for whole in ids] == list("12345")


def test_rating_prompt_and_record_tokenise_alone_as_they_do_together(tokenizer):
    for guide in rating_guides():
        prefix = f"{guide}\n\nInstruction:"
        record = "Is 3 larger?\ncat, dog\nResponse:Yes\nThe answer is: \n"
        together = tokenizer(prefix + record).input_ids
        assert together == tokenizer(prefix).input_ids + tokenizer(record).input_ids


def test_any_text_survives_the_tokenizer(tokenizer):
    for text in ("Grüße aus Köln 1234", "日本語 🙂\n\n\tx", " leading and trailing "):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_pieces_of_a_document_tokenise_as_the_whole(tokenizer):
    rng = random.Random(5)
    for _ in range(60):
        pieces = [text for text, _ in document(rng, rating_guides())]
        parts = [i for piece in pieces for i in tokenizer(piece).input_ids]
        assert parts == tokenizer("".join(pieces)).input_ids


def test_alpaca_template_tells_records_with_and_without_input_apart():
    assert "### Input:\ncat\n" in alpaca_prompt("Count.", "cat")
    assert "### Input" not in alpaca_prompt("Count.", "")


@pytest.fixture
def short_recipe(monkeypatch: pytest.MonkeyPatch, tokenizer) -> Iterator[pretrain.Recipe]:
    threads = torch.get_num_threads()
    monkeypatch.setattr(pretrain, "build_tokenizer", lambda _seed: tokenizer)
    recipe = dataclasses.replace(
        RECIPES["small"], width=32, inner=64, heads=2, layers=1, steps=4, legs=(Leg(2, 1e-3, 4),)
    )
    yield recipe
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def test_training_twice_gives_the_same_bytes_also_when_interrupted(short_recipe, tmp_path: Path):
    pretrain.train(short_recipe, tmp_path / "whole")
    pretrain.train(short_recipe, tmp_path / "again")
    pretrain.train(short_recipe, tmp_path / "broken", stop_after=2)
    assert (tmp_path / "broken" / "small" / "checkpoint.pt").exists()
    pretrain.train(short_recipe, tmp_path / "broken")
    weights = [
        (tmp_path / name / "small" / "model.safetensors").read_bytes()
        for name in ("whole", "again", "broken")
    ]
    assert weights[0] == weights[1] == weights[2]
    assert not (tmp_path / "broken" / "small" / "checkpoint.pt").exists()


def test_checkpoint_of_another_recipe_is_refused(short_recipe, tmp_path: Path):
    pretrain.train(short_recipe, tmp_path, stop_after=1)
    with pytest.raises(ValueError, match="another recipe"):
        pretrain.train(dataclasses.replace(short_recipe, seed=8), tmp_path)


def test_wide_model_starts_with_the_logits_of_the_one_it_grows_from(tokenizer):
    source = AutoModelForCausalLM.from_pretrained(MODELS / "small")
    target = pretrain.new_model(RECIPES["large"], tokenizer)
    grow(source, target, noise=0.0)
    ids = torch.tensor([tokenizer("Instruction:What is 2+2?\nResponse:4").input_ids])
    with torch.no_grad():
        torch.testing.assert_close(target(ids).logits, source(ids).logits, rtol=1e-4, atol=1e-3)


def test_fused_score_parts_right_from_wrong_on_a_fresh_pool(tmp_path: Path):
    build.build(tmp_path, seed=11, pool_size=300, control_size=15, benchmark_size=15)
    pool = select_experiment(
        dataset={"path": str(tmp_path / "pool.jsonl")},
        models=[{"path": str(MODELS / name)} for name in RECIPES],
        rating={},
        selection={"share": 0.2},
    )
    select_records(pool, tmp_path / "selected.jsonl", tmp_path / "scores")
    quality = judge.read_known_quality(tmp_path / "known_quality.jsonl")
    verdicts = judge.judge_folder(tmp_path / "scores", quality)
    fused = verdicts[-1]
    assert fused.right_against_wrong >= 0.92
    assert fused.share_right >= 0.95
    assert fused.right_against_wrong >= max(
        v.right_against_wrong for v in verdicts if v.level == "sentence"
    )
    kept = (tmp_path / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    assert sum(quality[json.loads(line)["id"]] == "right" for line in kept) >= 0.95 * len(kept)
