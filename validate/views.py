"""Two views of one time, one inside the other: client >= server >= engine >= kernel, processor >= memory (D3).

The views need no model and no data sheet, so that they also judge what every bound lets pass. For two views that should
be equal see `validate.factors.constant_ratio`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ROUNDING = 0.01  # relative: stated figures are rounded


@dataclass(frozen=True)
class Nesting:
    """verdict: "holds", "violated", or "unverifiable" without a point that both views have.

    n: points compared; violations: those at which the part is longer than the whole; worst: smallest outer / inner.
    """

    verdict: str
    n: int
    violations: int = 0
    worst: float = math.nan


def nested(
    outer: Sequence[float | None] | None, inner: Sequence[float | None] | None, margin: float = ROUNDING
) -> Nesting:
    """Whether a time seen from outside is at least that seen within, point by point; both in one unit.

    margin: relative, by which the inner one may be above. A view that is missing, as a whole or at every point, makes
    it unverifiable, never fine. ValueError when the views have different numbers of points.
    """
    pairs = zip(outer or (), inner or (), strict=bool(outer and inner))
    ratios = [a / b for a, b in pairs if _positive(a) and _positive(b)]
    if not ratios:
        return Nesting("unverifiable", 0)
    violations = sum(ratio * (1.0 + margin) < 1.0 for ratio in ratios)
    return Nesting("violated" if violations else "holds", len(ratios), violations, min(ratios))


def _positive(value: float | None) -> bool:
    return value is not None and 0.0 < value < math.inf
