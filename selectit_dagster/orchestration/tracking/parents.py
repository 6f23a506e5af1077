"""The MLflow run above those of one Dagster run: opened once, described, and ended."""

from __future__ import annotations

import json
from pathlib import Path

from selectit_dagster.artefacts.files import read_json, write_json
from selectit_dagster.orchestration.tracking.tracking_store import TrackingStore


class ParentRuns(TrackingStore):
    """What is known of Dagster runs; a note per run says it without asking the store."""

    def _parent_note(self, dagster_run_id: str) -> Path:
        return self.folder / "parents" / f"{dagster_run_id}.json"

    def knows(self, dagster_run_id: str) -> bool:
        """Tell whether a Dagster run has runs here, without asking the store."""
        return self._parent_note(dagster_run_id).exists()

    def parent(self, dagster_run_id: str, name: str, tags: dict[str, str]) -> str | None:
        """Return the parent run of a Dagster run, made by whichever step comes first."""
        if not self.enabled:
            return None
        return self.attempt("open the parent run", self._parent, dagster_run_id, name, tags)

    def _parent(self, dagster_run_id: str, name: str, tags: dict[str, str]) -> str:
        note = self._parent_note(dagster_run_id)
        with self._lock("parents"):
            if note.exists():
                return str(json.loads(note.read_text(encoding="utf-8"))["run_id"])
            run = self.client.create_run(
                self.experiment_id,
                run_name=name,
                tags={"dagster.run_id": dagster_run_id, "selectit.level": "parent", **tags},
            )
            described = tags.get("mlflow.note.content")
            lines = {"way back": described} if described else {}
            write_json(note, {"run_id": run.info.run_id, "lines": lines})
            return str(run.info.run_id)

    def remember_comparison(self, dagster_run_id: str, asset: str, link: str) -> None:
        """Write a comparison's link into the description of a Dagster run's parent."""
        self._note_on_parent(dagster_run_id, f"compare.{asset}", f"[Compare {asset}]({link})")

    def remember_remedy(self, dagster_run_id: str, text: str) -> None:
        """Write what to do next into the description of a failed Dagster run's parent."""
        self._note_on_parent(dagster_run_id, "remedy", text)

    def _note_on_parent(self, dagster_run_id: str, name: str, text: str) -> None:
        if self.enabled and self.knows(dagster_run_id):
            self.attempt("describe the parent run", self._describe, dagster_run_id, name, text)

    def _describe(self, dagster_run_id: str, name: str, text: str) -> None:
        file = self._parent_note(dagster_run_id)
        with self._lock("parents"):
            note = json.loads(file.read_text(encoding="utf-8"))
            note.setdefault("lines", {})[name] = text
            write_json(file, note)
            described = "\n\n".join(note["lines"].values())
            self.client.set_tag(note["run_id"], "mlflow.note.content", described)

    def close_run(self, dagster_run_id: str, status: str) -> int:
        """End the parent of a Dagster run and every child left RUNNING; return how many."""
        if not self.enabled:
            return 0
        return self.attempt("close runs", self._close_run, dagster_run_id, status) or 0

    def _close_run(self, dagster_run_id: str, status: str) -> int:
        running = self.client.search_runs(
            [self.experiment_id],
            filter_string=(
                f"tags.`dagster.run_id` = '{dagster_run_id}' and attributes.status = 'RUNNING'"
            ),
        )
        for run in running:
            self.client.set_terminated(run.info.run_id, status)
        self._mark_closed(dagster_run_id)
        return len(running)

    def _mark_closed(self, dagster_run_id: str) -> None:
        file = self._parent_note(dagster_run_id)
        with self._lock("parents"):
            if file.exists():
                note = json.loads(file.read_text(encoding="utf-8"))
                write_json(file, {**note, "closed": True})

    def unclosed(self) -> list[str]:
        """Return the Dagster runs whose MLflow runs were opened here and not yet ended."""
        if not self.enabled:
            return []
        notes = sorted((self.folder / "parents").glob("*.json"))
        return [note.stem for note in notes if not read_json(note).get("closed")]
