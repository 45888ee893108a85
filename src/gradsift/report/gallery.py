"""Which examples mattered: those scored highest and lowest, drawn most and least."""

import base64
import struct
import zlib
from collections.abc import Iterable
from html import escape

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from gradsift.report.numbers import quantity
from gradsift.report.picks import Picks

COUNT = 12
"""Examples of each kind."""

STRIPS = {
    "high": "Largest scores",
    "low": "Smallest scores",
    "most": "Most drawn",
    "least": "Least drawn",
}


def gallery(picks: Picks) -> str:
    """The extreme examples of one run as HTML: images where inputs are images, text elsewhere."""
    chosen = picks.extremes(COUNT)
    names = list(STRIPS) if _uneven(picks) else ["high", "low"]
    strips = "\n".join(_strip(picks, STRIPS[name], chosen[name].tolist()) for name in names)
    return f"{strips}\n<p>{escape(draws_in_words(picks))}</p>"


def draws_in_words(picks: Picks) -> str:
    """How evenly a run drew its training set.

    Example:
        >>> ids, none = np.arange(3), np.zeros(0, dtype=np.float32)
        >>> draws_in_words(Picks(ids, np.ones(3), np.array([0, 4, 2]), ids, none, ()))
        'Each of 3 training examples was drawn 0 to 4 times, 2 on average; 1 (33.3 %) never.'
    """
    draws = picks.draws
    never = int((draws == 0).sum())
    text = (
        f"Each of {len(draws):,} training examples was drawn {draws.min():,} to {draws.max():,} "
        f"times, {quantity(float(draws.mean()))} on average"
    )
    return f"{text}; {never:,} ({100 * never / len(draws):.1f} %) never." if never else f"{text}."


def png(pixels: UInt8[np.ndarray, "height width *channels"]) -> bytes:
    r"""An image file of grey ``[height, width]`` or colour ``[height, width, 3]`` pixels.

    Example:
        >>> png(np.zeros((2, 2), dtype=np.uint8))[:4]
        b'\x89PNG'
    """
    height, width = pixels.shape[:2]
    colour = 2 if pixels.ndim == 3 else 0
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def as_pixels(inputs: NDArray[np.float32]) -> UInt8[np.ndarray, "height width *channels"]:
    """One image ``[channels, height, width]`` as bytes, from its smallest to its largest value.

    Example:
        >>> as_pixels(np.array([[[-1.0, 0.0, 1.0]]], dtype=np.float32)).tolist()
        [[0, 128, 255]]
    """
    low, high = float(inputs.min()), float(inputs.max())
    scaled = (inputs - low) / (high - low) if high > low else np.zeros_like(inputs)
    pixels = np.round(scaled * 255).astype(np.uint8).transpose(1, 2, 0)
    return np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _strip(picks: Picks, title: str, ids: Iterable[int]) -> str:
    items = "\n".join(_item(picks, index) for index in ids)
    kind = "images" if picks.inputs.size else "lines"
    return f'<h4>{title}</h4>\n<ul class="picks {kind}">\n{items}\n</ul>'


def _item(picks: Picks, index: int) -> str:
    place = int(np.searchsorted(picks.shown, index))
    text = escape(picks.texts[place])
    label = f"{_score(picks, index)}drawn {int(picks.draws[index]):,}x"
    if not picks.inputs.size:
        return f"<li><code>{text}</code><span>{label}</span></li>"
    data = base64.b64encode(png(as_pixels(picks.inputs[place]))).decode()
    return (
        f'<li><img src="data:image/png;base64,{data}" alt="example {index}, label {text}">'
        f"<b>{text}</b><span>{label}</span></li>"
    )


def _score(picks: Picks, index: int) -> str:
    place = int(np.searchsorted(picks.scored, index))
    if place < len(picks.scored) and picks.scored[place] == index:
        return f"score {quantity(float(picks.scores[place]))}<br>"
    return ""


def _uneven(picks: Picks) -> bool:
    """Whether some example was drawn more often than shuffling explains."""
    return int(picks.draws.max() - picks.draws.min()) > 1


def _chunk(name: bytes, content: bytes) -> bytes:
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)
