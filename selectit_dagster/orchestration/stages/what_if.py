"""What-if runs: ranked and selected with other settings, beside the current selection."""

from __future__ import annotations

import dataclasses
from typing import Any

from selectit_dagster.artefacts.files import read_json, sha256_json, write_json
from selectit_dagster.artefacts.manifest import Manifest, read_manifest, require_manifest
from selectit_dagster.errors import UserError
from selectit_dagster.orchestration.stages.overrides import Overrides
from selectit_dagster.orchestration.stages.selection_stages import (
    SelectionStages,
    ranking_settings,
)
from selectit_dagster.orchestration.stages.stage import Stage
from selectit_dagster.progress import Progress, Silent
from selectit_dagster.selection.difference import compare_selections
from selectit_dagster.selection.history import Version

WHAT_IF = "what-if.json"


class WhatIfs(SelectionStages):
    """Selections with other settings, each in a place of its own, and how one comes into use."""

    def what_if(self, arm: str, overrides: Overrides, shown: Stage | None = None) -> Stage:
        """Build the stage that ranks and selects with other settings.

        Its artefact is that of ``shown``, the current selection where it is None, which stays as
        it is; ``remark`` says what the other settings would choose, and ``settings`` the name to
        promote it by.

        Raises
        ------
        UserError
            When a setting is out of range, or there is no selection to compare with.
        """
        current = self.selected(arm)
        shown = shown or current
        name = sha256_json([arm, overrides.given()])[:8]
        place = self.home.what_ifs / name
        folder = place / "selected" / arm
        ranked = self.ranking_request(overrides)
        chosen = self.selection_request(arm, overrides, ranking=place / "ranking")
        settings = ranking_settings(ranked) | self.selection_settings(chosen, overrides)
        if read_manifest(current.folder) is None:
            raise UserError(
                f"there is no selection of {arm} yet that other settings could be compared with",
                hint="select once with the settings of the experiment file",
            )

        def run(progress: Progress) -> Manifest:
            from selectit_dagster.selection.ranking import rank
            from selectit_dagster.selection.subset import select

            rank(ranked, place / "ranking", Silent())
            made = select(chosen, folder, progress)
            facts = {
                "name": name,
                "arm": arm,
                "settings": overrides.given(),
                "made_at": made.created_at,
                "selected": made.counts["selected"],
                "change": compare_selections(current.folder, folder).summary(),
            }
            write_json(place / WHAT_IF, facts)
            return require_manifest(shown.folder, made_by=shown.title)

        def remark() -> str:
            return (
                f"What-if {name}, beside the current selection, which stays as it is: "
                f"{read_json(place / WHAT_IF)['change']['text']} "
                f"To use it: selectit promote {name}"
            )

        return dataclasses.replace(
            shown,
            settings=settings | {"what_if": name},
            run=run,
            remark=remark,
            note=lambda **_: None,
        )

    def what_ifs(self) -> list[dict[str, Any]]:
        """Return what is known of the what-if runs, newest first."""
        found = [read_json(path) for path in self.home.what_ifs.glob(f"*/{WHAT_IF}")]
        return sorted(found, key=lambda facts: str(facts["made_at"]), reverse=True)

    def known_what_if(self, name: str) -> dict[str, Any]:
        """Return what is known of one what-if run; raises UserError where there is none."""
        known = {str(facts["name"]): facts for facts in self.what_ifs()}
        if name not in known:
            raise UserError(
                f"there is no what-if {name}",
                hint=f"there are {', '.join(known)}" if known else "make one with selectit rank",
            )
        return known[name]

    def promote(self, name: str, why: str, asked_by: str) -> Version:
        """Put the selection of a what-if run into use, as the next version of its arm.

        Raises
        ------
        UserError
            When there is no such what-if.
        """
        arm = str(self.known_what_if(name)["arm"])
        made = self.home.what_ifs / name / "selected" / arm
        return self.history(arm).promote(made, name, why, asked_by=asked_by)
