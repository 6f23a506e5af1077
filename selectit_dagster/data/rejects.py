"""Rejected records on the disk, and records made fit to be shown."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from selectit_dagster.data.fields import Excluded, Unusable
from selectit_dagster.display import one_line

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES = 5


@dataclass
class Rejects:
    """The rejected records: every one on disk, the reasons counted."""

    handle: IO[bytes]
    total: int = 0
    excluded: int = 0
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    first: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    places: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, position: int, line: int, fault: Unusable, raw: bytes, file: str = "") -> None:
        """Write one reject."""
        excerpt = one_line(raw[:400].decode("utf-8", "backslashreplace"))
        name = one_line(fault.field)
        entry = {"position": position, "field": name, "reason": fault.reason, "excerpt": excerpt}
        if line:
            entry["line"] = line
        if file:
            entry["file"] = file
        self.handle.write(json.dumps(entry, ensure_ascii=False).encode("utf-8") + b"\n")
        self.total += 1
        self.excluded += isinstance(fault, Excluded)
        # places inside a conversation differ from record to record; the kind of fault does not
        key = (name.split("[")[0], fault.reason.split(" (column")[0])
        self.places.setdefault(key, name)
        if key in self.reasons or len(self.reasons) < 1000:
            self.reasons[key] += 1
            if len(positions := self.first.setdefault(key, [])) < EXAMPLES:
                positions.append(position)

    def table(self) -> list[dict[str, Any]]:
        """Return the reasons, the most frequent first, with their first positions."""
        ordered = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        return [
            {
                "field": self.places[key],
                "reason": key[1],
                "count": n,
                "first_positions": self.first[key],
            }
            for key, n in ordered[:20]
        ]


def preview_rows(batch: pa.RecordBatch, count: int) -> list[dict[str, Any]]:
    """Return the first records, shortened and with control characters escaped."""
    columns = ["record_id", "instruction", "input", "response"]
    rows = batch.slice(0, count).select(columns).to_pylist()
    return [{name: one_line(row[name]) for name in columns} for row in rows]
