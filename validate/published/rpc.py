"""RPC: its figures are its inputs here."""

from __future__ import annotations

from validate.published.comparison import Comparison
from validate.published.numbers import Number, all_numbers

TITLE = "RPC: Bridging Internal Probability and Self-Consistency (arXiv:2502.00511, 2510.15444)"
ABOUT = (
    "Self-consistency with fewer samples and a weighted vote. The known figures are quoted in third-party notes: "
    "sample counts and CPU seconds, both of which a flight takes as parameters."
)
INPUT = "how many samples reach an accuracy depends on the model's probabilities; `samples` is an input of the flight"
TIME = "`prune_s` is an input of the flight"


def compare() -> list[Comparison]:
    """All quoted figures, none of them reproduced."""
    return [_row(found) for found in all_numbers() if found.strategy == "RPC"]


def _row(found: Number) -> Comparison:
    time = found.metric == "overhead" or found.unit == "s"
    return Comparison(
        "rpc",
        f"{found.config}, {found.metric}" if "->" not in found.metric else _samples(found),
        found.unit,
        found.value,
        None,
        None,
        status=found.status,
        source=found.source,
        reason=TIME if time else INPUT,
    )


def _samples(found: Number) -> str:
    """ "SC 64 -> RPC 32" in words."""
    before, after = (side.split()[-1] for side in found.metric.split(" -> "))
    return f"{found.config.partition(':')[0]}: {before} samples of self-consistency against {after} of RPC"
