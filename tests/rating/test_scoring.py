"""The scoring stage: every record accounted for, resumed, reused, never mixed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scoring_world import HashedBackend, request_for, some_records, write_records

from selectit_dagster.artefacts.files import write_parquet
from selectit_dagster.artefacts.manifest import verify
from selectit_dagster.errors import ArtefactError, UserError
from selectit_dagster.rating import prompts as prompt_module
from selectit_dagster.rating import scoring, scoring_run
from selectit_dagster.rating.rating_tokens import Encoder
from selectit_dagster.rating.score_journal import Journal, JournalContent, JournalRow, read_journal
from selectit_dagster.rating.score_store import FAILED, OK, TOO_LONG, read_scores, write_part
from selectit_dagster.rating.scoring import score, scoring_fingerprint

pytestmark = pytest.mark.usefixtures("small_chunks")


def test_every_row_is_what_the_model_says_about_its_text(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    backend = HashedBackend()
    request = request_for(records, tiny_model_folder)
    manifest = score(request, tmp_path / "scores", backend=backend)
    assert manifest.counts == {
        "records": 60, "prompts": 5, "ok": 60, "too_long": 0, "failed": 0, "truncated": 0,
        "scored": 300, "reused": 0, "resumed": 0,
    }  # fmt: skip
    verify(tmp_path / "scores")
    stored = read_scores(tmp_path / "scores", 5)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    for i, row in enumerate(some_records(60)):
        assert stored.record_ids[i] == row["record_id"]
        instruction = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        for k, prompt in enumerate(request.prompts()):
            text = f"{prompt.text}\n\nInstruction:{instruction}\nResponse:{row['response']}"
            ids = tokenizer.encode(text + "\nThe answer is: \n")
            p = np.exp(backend.log_p(np.array(ids, dtype=np.int32).tobytes()).astype(np.float64))
            np.testing.assert_allclose(stored.probabilities[i, k], p / p.sum(), atol=1e-6)
            np.testing.assert_allclose(stored.rating_mass[i, k], p.sum(), rtol=1e-5)


def test_a_complete_folder_is_returned_as_it_is(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=1)
    first = score(request, tmp_path / "scores", backend=HashedBackend())
    again = HashedBackend()
    assert score(request, tmp_path / "scores", backend=again) == first
    assert not again.calls
    left = {path.name for path in (tmp_path / "scores").iterdir()}
    assert left == {*first.files, "manifest.json", ".lock"}


def test_more_records_and_another_prompt_reuse_what_is_there(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    score(request_for(records, tiny_model_folder, num_prompts=2), out, backend=HashedBackend())
    backend = HashedBackend()
    manifest = score(request_for(records, tiny_model_folder, num_prompts=3), out, backend=backend)
    assert (manifest.counts["reused"], manifest.counts["scored"]) == (120, 60)
    assert len(backend.calls) == 60

    grown = [*some_records(30, seed=5), *some_records(60)]
    grown[40]["response"] = "changed under the same name"
    write_records(records, grown)
    backend = HashedBackend()
    manifest = score(request_for(records, tiny_model_folder, num_prompts=3), out, backend=backend)
    assert (manifest.counts["reused"], manifest.counts["scored"]) == (59 * 3, 31 * 3)

    fresh = score(
        request_for(records, tiny_model_folder, num_prompts=3),
        tmp_path / "fresh",
        backend=HashedBackend(),
    )
    assert fresh.digest == manifest.digest


def test_fewer_records_do_not_lose_the_others(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    whole = score(request_for(records, tiny_model_folder), out, backend=HashedBackend())
    write_records(records, some_records(60)[:10])
    few = score(request_for(records, tiny_model_folder), out, backend=HashedBackend())
    assert few.counts["records"] == 10
    assert few.counts["scored"] == 0
    write_records(records, some_records(60))
    again = score(request_for(records, tiny_model_folder), out, backend=HashedBackend())
    assert again.counts["scored"] == 0
    assert again.digest == whole.digest


def test_other_settings_are_put_aside_named_and_taken_up_again(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scores"
    plain = request_for(records, tiny_model_folder, num_prompts=1)
    first = score(plain, out, backend=HashedBackend())
    shorter = request_for(records, tiny_model_folder, num_prompts=1, max_length=200)
    with pytest.raises(ArtefactError, match="max_length: stored None, expected 200"):
        score(shorter, out, backend=HashedBackend(), on_mismatch="refuse")
    assert score(plain, out, backend=HashedBackend()) == first

    second = score(shorter, out, backend=HashedBackend())
    assert second.counts["reused"] == 0
    assert "max_length: stored None, expected 200" in second.details["warnings"][0]
    assert len(list(tmp_path.glob("scores.superseded-*"))) == 1
    backend = HashedBackend()
    third = score(plain, out, backend=backend)
    assert not backend.calls
    assert third.digest == first.digest


def test_each_setting_that_changes_a_score_changes_the_fingerprint(
    records: Path, tiny_model_folder: Path, second_tiny_model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("Rate this.\nHow good is it?\n")
    base = scoring_fingerprint(request_for(records, tiny_model_folder))
    for field, request in {
        "model.weights": request_for(records, second_tiny_model_folder),
        "num_ratings": request_for(records, tiny_model_folder, num_ratings=4),
        "prompts": request_for(records, tiny_model_folder, prompts=str(file), num_prompts=2),
        "chat_template": request_for(records, tiny_model_folder, chat_template=True),
        "too_long": request_for(records, tiny_model_folder, too_long="truncate-response"),
        "adaptive": request_for(records, tiny_model_folder, adaptive=True),
    }.items():
        assert scoring_fingerprint(request)[field] != base[field]
    same = request_for(records, tiny_model_folder, alpha=0.7, max_batch_tokens=64)
    assert scoring_fingerprint(same) == base


def test_what_does_not_fit_is_named_and_nothing_else_moves(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    rows = some_records(20)
    rows[3]["response"] = "the quick brown fox " * 300
    rows[7]["instruction"] = "jumps over " * 600
    write_records(records, rows)
    request = request_for(records, tiny_model_folder, num_prompts=2)
    manifest = score(request, tmp_path / "scores", backend=HashedBackend())
    assert manifest.counts["too_long"] == 2
    assert manifest.counts["ok"] == 18
    stored = read_scores(tmp_path / "scores", 2)
    assert np.flatnonzero(stored.record_status == TOO_LONG).tolist() == [3, 7]
    assert stored.reasons[3, 0].endswith("tokens, 512 fit")
    assert manifest.details["examples"][0]["record_id"] == "r0-3"

    cut = request_for(records, tiny_model_folder, num_prompts=2, too_long="truncate-response")
    manifest = score(cut, tmp_path / "cut", backend=HashedBackend())
    assert manifest.counts["truncated"] == 1
    assert manifest.counts["too_long"] == 1
    shortened = read_scores(tmp_path / "cut", 2)
    assert shortened.reasons[3, 1].startswith("response cut from")
    assert "even without its response" in shortened.reasons[7, 0]
    others = [i for i in range(20) if i not in (3, 7)]
    np.testing.assert_array_equal(stored.probabilities[others], shortened.probabilities[others])


def test_what_a_model_refuses_whose_files_changed_is_told_as_the_change(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model_folder, model)

    class Replaced(HashedBackend):
        def rate_rows(self, batch: Any) -> np.ndarray:
            (model / "config.json").write_text("{}")
            raise UserError("the model gives other numbers each time")

    with pytest.raises(UserError, match="was changed while"):
        score(request_for(records, model, num_prompts=2), tmp_path / "scores", backend=Replaced())
    assert not list((tmp_path / "scores").glob("part-*"))


def test_what_is_not_a_number_fails_with_a_reason(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    broken = HashedBackend(broken=range(12))
    request = request_for(records, tiny_model_folder, num_prompts=2, max_failed_share=1)
    manifest = score(request, tmp_path / "scores", backend=broken)
    clean = HashedBackend()
    score(request, tmp_path / "clean", backend=clean)
    found, fine = read_scores(tmp_path / "scores", 2), read_scores(tmp_path / "clean", 2)
    failed = found.status == FAILED
    assert 0 < failed.sum() < 60
    assert manifest.counts["failed"] == int(failed.any(axis=1).sum())
    assert {found.reasons[at] for at in zip(*np.nonzero(failed), strict=True)} == {"not a number"}
    np.testing.assert_array_equal(found.probabilities[~failed], fine.probabilities[~failed])


def test_out_of_memory_halves_the_batch_and_rates_the_same_records(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=2, max_batch_tokens=2000)
    small = HashedBackend(most=300)
    manifest = score(request, tmp_path / "small", backend=small)
    score(request, tmp_path / "large", backend=HashedBackend())
    assert manifest.counts["ok"] == 60
    assert any("did not fit into memory" in text for text in manifest.details["warnings"])
    np.testing.assert_array_equal(
        read_scores(tmp_path / "small", 2).probabilities,
        read_scores(tmp_path / "large", 2).probabilities,
    )
    with pytest.raises(UserError, match="out of memory with"):
        score(request, tmp_path / "none", backend=HashedBackend(most=1))


def rate_in_child(request: object, out: Path, log: Path, delay: float) -> int:
    """Score in a forked process; return its id."""
    child = os.fork()
    if child == 0:
        try:
            score(request, out, backend=HashedBackend(delay=delay, log=log))  # type: ignore[arg-type]
        finally:
            os._exit(0)
    return child


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_random_moments_the_result_equals_an_unbroken_run(
    records: Path, tiny_model_folder: Path, tmp_path: Path, kills: int
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=3)
    unbroken = score(request, tmp_path / "unbroken", backend=HashedBackend(log=tmp_path / "a"))
    batches = len((tmp_path / "a").read_text().splitlines())
    out, log, chance = tmp_path / "killed", tmp_path / "b", random.Random(kills)  # noqa: S311 - no secret
    log.touch()
    # a fair share of the remaining work for each life, so that the kills hit all of the run
    delay = 0.02
    for life in range(kills):
        child = rate_in_child(request, out, log, delay)
        seen = len(log.read_text().splitlines())
        goal = seen + chance.randint(1, max(1, (batches - seen) // (kills - life)))
        deadline = time.monotonic() + 60
        while len(log.read_text().splitlines()) < goal and time.monotonic() < deadline:
            time.sleep(chance.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    manifest = score(request, out, backend=HashedBackend(log=log))
    assert manifest.digest == unbroken.digest
    rated = len(log.read_text().splitlines())
    # at most the batches that the two workers had in hand, and one just handed over
    assert rated <= batches + 3 * kills
    assert {path.name for path in out.iterdir()} == {
        path.name for path in (tmp_path / "unbroken").iterdir()
    }


def test_a_journal_that_a_kill_left_beside_its_part_is_removed(
    records: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def write_and_die(*arguments: Any) -> None:
        write_part(*arguments)
        raise KilledError

    request, out = request_for(records, tiny_model_folder, num_prompts=1), tmp_path / "out"
    whole = score(request, tmp_path / "whole", backend=HashedBackend())
    with monkeypatch.context() as patch:
        patch.setattr(scoring_run, "write_part", write_and_die)
        with pytest.raises(KilledError):
            score(request, out, backend=HashedBackend())
    assert list(out.glob("journal-*"))
    assert score(request, out, backend=HashedBackend()).digest == whole.digest
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in out.iterdir()} == names


def test_what_a_kill_after_the_manifest_left_undone_is_done_by_the_next_start(
    records: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*_: object) -> None:
        raise KilledError

    request, out = request_for(records, tiny_model_folder, num_prompts=1), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "draw", killed)
        with pytest.raises(KilledError):
            score(request, out, backend=HashedBackend())
    drawn: list[Path] = []
    monkeypatch.setattr(scoring, "draw", lambda _, folder: drawn.append(folder))
    log = tmp_path / "log"
    log.touch()
    for _ in range(2):
        score(request, out, backend=HashedBackend(log=log))
        assert not log.read_text(encoding="utf-8")
        assert drawn == [out]
        assert not (out / "state.json").exists()


def test_a_torn_journal_and_a_torn_part_cost_only_their_rows(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=1)
    unbroken = score(request, tmp_path / "unbroken", backend=HashedBackend())
    out = tmp_path / "torn"

    class Dies(HashedBackend):
        def rate_rows(self, batch):
            if len(self.sizes) > 6:
                raise KeyboardInterrupt
            return super().rate_rows(batch)

    with pytest.raises(KeyboardInterrupt):
        score(request, out, backend=Dies())
    journal = next(out.glob("journal-*.jsonl"))
    journal.write_bytes(journal.read_bytes()[:-20])
    part = next(iter(sorted(out.glob("part-*.parquet"))), None)
    if part is not None:
        part.write_bytes(part.read_bytes()[:100])
    manifest = score(request, out, backend=HashedBackend())
    assert manifest.digest == unbroken.digest


def test_bad_input_is_refused_before_a_model_is_loaded(
    records: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selectit_dagster.inference import model_loading

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(model_loading, "load_model", refuse)
    out = tmp_path / "scores"
    with pytest.raises(UserError, match=r"missing/records|does not exist"):
        score(request_for(tmp_path / "missing", tiny_model_folder), out)
    with pytest.raises(UserError, match="fewer than num_prompts 12"):
        score(request_for(records, tiny_model_folder, num_prompts=12), out)
    with pytest.raises(UserError, match="has no chat template"):
        score(request_for(records, tiny_model_folder, chat_template=True), out)
    lacking = tmp_path / "lacking"
    write_records(lacking, [{"record_id": "a", "instruction": "b", "input": ""}])
    with pytest.raises(UserError, match="has no column 'response'"):
        score(request_for(lacking, tiny_model_folder), out)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "records.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"broken/records\.parquet cannot be read") as refusal:
        score(request_for(broken, tiny_model_folder), out)
    assert refusal.value.hint == "materialise curated_dataset first"
    empty = tmp_path / "empty"
    write_parquet(empty / "records.parquet", pa.Table.from_pylist(some_records(1)).slice(1))
    with pytest.raises(UserError, match=r"empty/records\.parquet holds no records") as refusal:
        score(request_for(empty, tiny_model_folder), out)
    assert refusal.value.hint == "check the dataset"


def test_a_prompt_longer_than_the_context_says_so(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, max_length=32)
    with pytest.raises(UserError, match="could not rate one of 60 records"):
        score(request, tmp_path / "scores", backend=HashedBackend())
    assert not (tmp_path / "scores" / "manifest.json").exists()


def test_two_processes_do_not_write_one_folder(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    request = request_for(records, tiny_model_folder, num_prompts=2)
    child = rate_in_child(request, tmp_path / "scores", tmp_path / "log", 0.2)
    try:
        while not (tmp_path / "log").exists():
            time.sleep(0.02)
        with pytest.raises(UserError, match="is in use by scoring with tiny"):
            score(request, tmp_path / "scores", backend=HashedBackend())
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_real_model_rates_as_a_plain_loop_does(
    records: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    request = request_for(records, tiny_model_folder, num_prompts=2)
    manifest = score(request, tmp_path / "scores")
    assert manifest.details["way"] == "prefix"
    assert manifest.details["linear_layers"].startswith(("packed", "plain: "))
    assert manifest.details["parameters"] > 0
    stored = read_scores(tmp_path / "scores", 2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    ids = manifest.details["rating_token_ids"]
    assert [tokenizer.decode([i]) for i in ids] == ["1", "2", "3", "4", "5"]
    for i, row in enumerate(some_records(60)[:10]):
        instruction = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        for k, prompt in enumerate(request.prompts()):
            text = prompt_module.rating_text(prompt, instruction, row["response"]).whole
            with torch.no_grad():
                logits = model(torch.tensor([tokenizer.encode(text)])).logits
            p = torch.softmax(logits[0, -1].float(), -1)[ids].numpy()
            np.testing.assert_allclose(stored.probabilities[i, k], p / p.sum(), atol=1e-5)
            np.testing.assert_allclose(stored.rating_mass[i, k], p.sum(), atol=1e-5)


def test_adaptive_rating_runs_with_an_audit_and_is_refused_without(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    records = write_records(tmp_path / "many", some_records(150))
    request = request_for(records, tiny_model_folder, audit_share=0.5, adaptive=True)
    manifest = score(request, tmp_path / "scores", backend=HashedBackend())
    audit = manifest.details["audit"]
    assert audit["method"] == "adaptive"
    assert audit["sample"] > 40
    assert -1 <= audit["rank_correlation"] <= 1
    assert 0 <= audit["overlap"] <= 1
    assert audit["prompts_saved"] > 0
    stored = read_scores(tmp_path / "scores", 5)
    assert any(text.startswith("not asked") for text in stored.reasons.values())
    exact = score(
        request_for(records, tiny_model_folder), tmp_path / "exact", backend=HashedBackend()
    )
    full = read_scores(tmp_path / "exact", 5)
    asked = stored.status == OK
    np.testing.assert_array_equal(stored.probabilities[asked], full.probabilities[asked])
    assert exact.counts["ok"] == 150
    too_few = request_for(records, tiny_model_folder, audit_share=0.01, adaptive=True)
    with pytest.raises(UserError, match="too few to measure"):
        score(too_few, tmp_path / "refused", backend=HashedBackend())


def test_an_audit_of_which_too_few_could_be_rated_is_refused(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    rows = some_records(30)
    for row in rows[:11]:
        row["response"] = "the quick brown fox " * 300
    records = write_records(tmp_path / "records", rows)
    request = request_for(records, tiny_model_folder, num_prompts=2, audit_share=1.0, adaptive=True)
    with pytest.raises(
        UserError, match="only 19 records of the audit sample's 30 could be rated"
    ) as refusal:
        score(request, tmp_path / "scores", backend=HashedBackend())
    assert "rating.audit_share" in refusal.value.hint


def test_the_manifest_is_plain_json(records: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    score(
        request_for(records, tiny_model_folder, num_prompts=1),
        tmp_path / "scores",
        backend=HashedBackend(),
    )
    value = json.loads((tmp_path / "scores" / "manifest.json").read_text())
    wanted = {
        "parameters", "revision", "rating_token_ids", "rating_mass", "dtype", "device",
        "prompts_per_second", "tokens_per_second", "seconds", "peak_memory_bytes", "warnings",
    }  # fmt: skip
    assert wanted <= set(value["details"])


def test_released_code_joins_an_unterminated_last_prompt_with_one_line_break(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "prompts.txt"
    file.write_text("First.\nLast.")
    paper = prompt_module.load_prompts(str(file), 2)
    released = prompt_module.load_prompts(str(file), 2, "released-code")
    assert [p.separator for p in paper] == ["\n\n", "\n\n"]
    assert [p.separator for p in released] == ["\n\n", "\n"]
    shutil.copy(file, tmp_path / "copy.txt")
    assert Encoder(AutoTokenizer.from_pretrained(tiny_model_folder)).trailing == 0


@pytest.mark.parametrize(
    "row",
    [
        [0, 0, "ab" * 16, [0.2] * 5, None, None],
        [True, 0, "ab" * 16, [0.2] * 5, 0.5, None],
        [-1, 0, "ab" * 16, [0.2] * 5, 0.5, None],
        [0, 0, "a name", [0.2] * 5, 0.5, None],
        [0, 0, "ab" * 16, None, None, None],
        [0, 0, "ab" * 16, [0.2] * 4, 0.5, None],
        [0, 0, "ab" * 16, ["0.2"] * 5, 0.5, None],
        [0, 0, "ab" * 16, [0.2] * 5, 0.5],
    ],
)
def test_a_journal_is_read_up_to_the_first_line_that_is_none_of_ours(
    tmp_path: Path, row: list
) -> None:
    good = JournalRow(1, 2, "cd" * 16, [0.2] * 5, 0.5, None)
    journal = Journal(tmp_path / "journal", "e", ["p"])
    journal.append([good])
    journal.append([row])
    journal.append([good])
    journal.close()
    content = read_journal(tmp_path / "journal")
    assert content == JournalContent("e", ["p"], [good])
