"""Figures as PNG bytes: the same data give the same bytes, small enough for a page's text."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png_bytes(figure: Figure) -> bytes:
    """Render a figure with 256 colours, about a third of the bytes of full colour."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    FigureCanvasAgg(figure)
    drawn, target = io.BytesIO(), io.BytesIO()
    # no metadata: the library's version would change the bytes
    figure.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(target, format="png", optimize=True)
    return target.getvalue()
