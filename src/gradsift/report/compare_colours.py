"""One colour per arm of a comparison, and what is done where there are more arms than colours."""

import math

from gradsift.report.compared import Compared, Row
from gradsift.report.figures import INK, SEVERAL

AGAIN = "#9ca3af"
"""The reference a second time, dashed."""

REST = "#cbd5e1"
"""Arms that are left without a colour of their own."""


def colours(found: Compared) -> dict[str, str]:
    """Dark grey for the reference, light grey for its second time, a colour for each other arm.

    Where there are more arms than colours, those with the lowest training loss have them.
    """
    others = [row for row in found.rows if row.arm not in (found.reference, found.again)]
    palette = SEVERAL[1:]
    best = {row.arm for row in sorted(others, key=_train_loss)[: len(palette)]}
    coloured = [row.arm for row in others if row.arm in best]
    chosen = dict.fromkeys((row.arm for row in others), REST)
    chosen |= dict(zip(coloured, palette, strict=False))
    return {found.reference: INK, **chosen, **({found.again: AGAIN} if found.again else {})}


def _train_loss(row: Row) -> float:
    loss = row.levels["train_loss"]
    return math.inf if loss is None or math.isnan(loss) else loss
