"""What a finished score folder holds, in figures: read back from its parts, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from selectit_dagster.errors import UserError
from selectit_dagster.inference.failures import is_device_failure
from selectit_dagster.rating.score_folder import short_keys
from selectit_dagster.rating.score_store import FAILED, OK, STATUSES, TOO_LONG, Ratings, read_part

# below this the rating tokens are not what the model would write, and its ratings are noise
SMALL_MASS = 0.01
_EXAMPLES = 10


@dataclass
class Summary:
    """Counts by record, rating mass, and examples of what was not rated.

    Attributes
    ----------
    counts:
        ``records``, ``prompts`` (K), and records ``ok``, ``too_long``, ``failed``,
        ``truncated``.
    rating_mass:
        ``mean`` and ``p05`` (fifth percentile) over all rated rows; empty without any.
    examples:
        Up to ten records that were not rated: id, status, reason.
    keys:
        The rated texts' short digests.
    failed_by_device:
        Rows that failed by their device and not by themselves.
    """

    files: list[str]
    counts: dict[str, int]
    rating_mass: dict[str, float]
    examples: list[dict[str, str]] = field(default_factory=list)
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    failed_by_device: int = 0

    @classmethod
    def of(cls, folder: Path) -> Summary:
        """Read the parts of ``folder`` one after the other."""
        names = ("records", "prompts", "ok", "too_long", "failed", "truncated")
        summary = cls([], dict.fromkeys(names, 0), {})
        masses, keys = [], []
        for path in sorted(folder.glob("part-*.parquet")):
            part = read_part(path)
            summary.files.append(path.name)
            summary._add(part)
            masses.append(part.rating_mass[part.status == OK])
            keys.append(short_keys(part.keys))
        if keys:
            summary.keys = np.concatenate(keys)
        mass = np.concatenate(masses) if masses else np.empty(0)
        mass = mass[~np.isnan(mass)]
        if mass.size:
            summary.rating_mass = {
                "mean": float(mass.mean(dtype=np.float64)),
                "p05": float(np.quantile(mass, 0.05)),
            }
        return summary

    def _add(self, part: Ratings) -> None:
        worst = part.record_status
        self.counts["records"] += len(worst)
        self.counts["prompts"] = part.status.shape[1]
        for code in (OK, TOO_LONG, FAILED):
            self.counts[STATUSES[code]] += int((worst == code).sum())
        cut = {i for i, k in part.reasons if worst[i] == OK and part.status[i, k] == OK}
        self.counts["truncated"] += len(cut)
        failed = np.argwhere(part.status == FAILED).tolist()
        self.failed_by_device += sum(is_device_failure(part.reasons.get((i, k))) for i, k in failed)
        for i in np.flatnonzero(worst != OK).tolist()[: _EXAMPLES - len(self.examples)]:
            k = int(part.status[i].argmax())
            self.examples.append(
                {
                    "record_id": part.record_ids[i],
                    "status": STATUSES[worst[i]],
                    "reason": part.reasons.get((i, k), ""),
                }
            )

    def warnings(self) -> list[str]:
        """Return what a user should know before trusting the ratings."""
        found = []
        mean = self.rating_mass.get("mean", 1.0)
        if mean < SMALL_MASS:
            found.append(
                f"the rating tokens get {mean:.2g} of the model's probability on average: it "
                "would hardly answer with a rating, so its ratings are close to noise"
            )
        for status in ("too_long", "failed"):
            count = self.counts[status]
            if count:
                found.append(f"{count:,} of {self.counts['records']:,} records are {status}")
        if self.failed_by_device:
            found.append(
                f"{self.failed_by_device:,} rows failed by the device and not by themselves: they "
                "are asked again when the scores are made again"
            )
        if self.counts["truncated"]:
            found.append(f"the responses of {self.counts['truncated']:,} records were cut")
        return found

    def require_some_ok(self, model: str) -> None:
        """Refuse a result without one rated record, saying why there is none.

        Raises
        ------
        UserError
            Naming the first record and its reason.
        """
        if self.counts["ok"] or not self.counts["records"]:
            return
        first = self.examples[0]
        raise UserError(
            f"{model} could not rate one of {self.counts['records']:,} records; the first, "
            f"{first['record_id']}, is {first['status']}: {first['reason']}",
            hint="check the model with `selectit doctor`; for records that are too long use "
            "rating.too_long: truncate-response, or a model with a longer context",
        )
