"""What happens to the figures of a run: columns scaled, times stretched with everything that follows from them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from calibration.records import METRICS, RunRecord

TTFT = tuple(name for name in METRICS if name.startswith("ttft"))
GAPS = tuple(name for name in METRICS if name.startswith(("tpot", "itl")))
E2E = tuple(name for name in METRICS if name.startswith("e2e"))
TIMES = (*TTFT, *GAPS, *E2E, "duration_s")
RATES = ("output_tok_per_s", "total_tok_per_s")
POWER = ("power_w", "energy_j_per_output_tok")
STATISTICS = ("mean", "median", "p99")


def scaled(record: RunRecord, names: Iterable[str], factor: float) -> RunRecord:
    """The record with the measured ones of these columns times `factor`."""
    found = {name: getattr(record, name) for name in names}
    return msgspec.structs.replace(record, **{n: v * factor for n, v in found.items() if v is not None})


def slower(record: RunRecord, factor: float) -> RunRecord:
    """Every time `factor` longer at the same power: rates fall, a token takes more energy."""
    out = scaled(record, (*TIMES, "energy_j_per_output_tok"), factor)
    return scaled(out, RATES, 1.0 / factor)


def retimed(record: RunRecord, ttft: float = 1.0, gaps: float = 1.0) -> RunRecord:
    """Times to the first token and between tokens stretched by factors; what follows from them follows.

    e2e gains what its parts gain, a closed loop's duration and rates change with it, power stays.
    """
    stretch = _stretch(record, ttft, gaps)
    out = scaled(scaled(scaled(record, TTFT, ttft), GAPS, gaps), E2E, stretch)
    # No request ends before its first token.
    late = {f"e2e_s_{w}": getattr(out, f"ttft_s_{w}") for w in STATISTICS if getattr(out, f"e2e_s_{w}") is not None}
    late = {name: first for name, first in late.items() if first is not None and first > getattr(out, name)}
    out = msgspec.structs.replace(out, **late)
    if record.load == "open_loop":
        return out  # what is asked for, and so the rates, is the client's
    out = scaled(scaled(out, ("duration_s", "energy_j_per_output_tok"), stretch), RATES, 1.0 / stretch)
    if record.batch_mean is None:
        return out
    # A first token that comes later waited: running sequences are fewer at a lower rate, and never more than clients.
    running = record.batch_mean * _stretch(record, 1.0, gaps) / stretch
    most = max(record.batch_mean, record.concurrency or running)
    return msgspec.structs.replace(out, batch_mean=min(running, most))


def _stretch(record: RunRecord, ttft: float, gaps: float) -> float:
    """How much longer a whole request takes, in the mean; the statistic that a record gives stands for the mean."""
    between = max((record.output_tok or 1.0) - 1.0, 0.0)
    for which in STATISTICS:
        first, gap = (getattr(record, f"{name}_s_{which}") for name in ("ttft", "tpot"))
        if first is None and gap is None:
            continue
        if first is None or between == 0.0:  # the part that is known is nearly all
            return gaps if first is None else ttft
        parts = getattr(record, f"e2e_s_{which}") or first + (gap or 0.0) * between
        added = first * (ttft - 1.0) + (gap or 0.0) * (gaps - 1.0) * between
        return max(1.0 + added / parts, 1e-3)
    return gaps


def repowered(record: RunRecord, factor: float) -> RunRecord:
    """Another mean power at the same times."""
    return scaled(record, POWER, factor)


def configured(record: RunRecord) -> RunRecord:
    """What a record says of its configuration: names and figures blank, but for the KV cache, which is read."""
    blank = dict.fromkeys((name for name in METRICS if name != "kv_capacity_tok"), None)
    return msgspec.structs.replace(record, run_id="", rel_noise=None, **blank)
