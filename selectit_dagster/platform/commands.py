"""Further commands: doctor, rank, explain, merge, chat."""

from __future__ import annotations
