"""Lengths within which a model's rotary positions mean the same: longrope and dynamic scaling.

Most architectures rotate a position by the same angle whatever the sequence's length. Two
kinds of scaling do not: ``longrope`` takes other factors above a length, and ``dynamic``
has frequencies of its own for every length above one. Rows of two regimes never share a
batch, and a cache never crosses from one regime into another.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_SWITCHES = {"longrope", "su"}
_GROWS = "dynamic"


@dataclass(frozen=True)
class PositionRegimes:
    """Where the meaning of positions changes with a sequence's length.

    Attributes
    ----------
    switches:
        Longest lengths of each regime but the last, ascending.
    grows_from:
        Above this length every length is a regime of its own; None where none is.
    """

    switches: tuple[int, ...] = ()
    grows_from: int | None = None

    @classmethod
    def of(cls, config: Any) -> PositionRegimes:  # noqa: ANN401 - one class per architecture
        """Return the regimes that a model's configuration tells."""
        text = config.get_text_config()
        switches, grows = set(), []
        for scaling in _scalings(text):
            kind = str(scaling.get("rope_type") or scaling.get("type"))
            original = scaling.get("original_max_position_embeddings")
            usual = getattr(text, "original_max_position_embeddings", None)
            longest = getattr(text, "max_position_embeddings", None)
            if kind in _SWITCHES:
                switches.add(int(original or usual or longest or 0))
            elif _GROWS in kind:
                grows += [int(value) for value in (original, longest) if value]
        return cls(tuple(sorted(switches)), min(grows, default=None))

    @property
    def vary(self) -> bool:
        """Whether there is more than one regime."""
        return bool(self.switches) or self.grows_from is not None

    def of_length(self, length: int) -> int:
        """Return the regime of a sequence of ``length`` tokens, as a number."""
        if self.grows_from is not None and length > self.grows_from:
            return length
        return -1 - bisect_left(self.switches, length)

    def bounds(self, length: int) -> tuple[int, int]:
        """Return the shortest and the longest length of the regime of ``length``."""
        if self.grows_from is not None and length > self.grows_from:
            return length, length
        at = bisect_left(self.switches, length)
        last = 1 << 40 if self.grows_from is None else self.grows_from
        below = self.switches[at - 1] + 1 if at else 1
        return below, self.switches[at] if at < len(self.switches) else last


def forget_lengths(model: Any) -> None:  # noqa: ANN401 - a torch.nn.Module
    """Set dynamic frequencies back to those of a model that has seen no sequence yet.

    The library keeps those of the longest sequence so far, so a result would depend on what
    ran before it.
    """
    for module in model.modules():
        if not hasattr(module, "max_seq_len_cached") or not hasattr(module, "original_max_seq_len"):
            continue
        for name, _ in list(module.named_buffers(recurse=False)):
            if name.endswith("inv_freq") and not name.endswith("original_inv_freq"):
                prefix = name.removesuffix("inv_freq")
                original = getattr(module, f"{prefix}original_inv_freq", None)
                if original is not None:
                    buffer = getattr(module, name)
                    module.register_buffer(name, original.to(buffer.device), persistent=False)
                if hasattr(module, f"{prefix}max_seq_len_cached"):
                    setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
        module.max_seq_len_cached = module.original_max_seq_len


def _scalings(text: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401
    """Yield each scaling that a configuration holds; some have one per kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(text, name, None)
        if isinstance(found, dict):
            yield found
            yield from (value for value in found.values() if isinstance(value, dict))
