"""Runs that measure their client: it sends late, or unlike devices stop at one throughput."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from validate.cases import Case, Evidence
from validate.finding import Finding
from validate.sweeps import load_of
from validate.wording import counted

CLIENT_SHARE = 0.05  # of the mean time to first token that the client may be late, as `calibrate collect` judges it
# One client that is the limit: 2.1 to 2.6 thousand tokens/s on four GPUs alike (a study of GPT-OSS-20B).
SAME_PLATEAU, UNLIKE_FLOORS, PLATEAU_GPUS = 1.25, 2.0, 3
NEAR_TOP = 0.8  # of the highest throughput, reached at half the highest load or less: a plateau
FAR_FROM_FLOOR = 0.5  # of the data sheet's throughput
RATES = ("output_tok_per_s", "total_tok_per_s", "duration_s")


def client_limits(evidence: Evidence) -> Iterator[Finding]:
    """Clients that were late by what their collector measured, and plateaus that devices share."""
    yield from _client_late(evidence.cases)
    yield from _same_plateau(evidence)


def _client_late(cases: Sequence[Case]) -> Iterator[Finding]:
    late = []
    for case in cases:
        lag_s, ttft_s = _number(case.record.flag_value("client_lag_s:")), case.record.ttft_s_mean
        if lag_s and ttft_s and lag_s > CLIENT_SHARE * ttft_s:
            late.append((case, lag_s, ttft_s))
    if late:
        worst, lag_s, ttft_s = max(late, key=lambda row: row[1] / row[2])
        yield Finding(
            check="validity.client_late", layer="validity", fault="F9", severity="warn", confidence="likely",
            runs=tuple(case.id for case, *_ in late),
            says=f"the client was late in {counted(len(late), 'run')}: by {1e3 * lag_s:.3g} ms, with a TTFT of"
            f" {1e3 * ttft_s:.3g} ms",
            metrics=("ttft_s_mean", "ttft_s_median", "ttft_s_p99"),
            evidence={
                "client_lag_s": lag_s, "ttft_s_mean": ttft_s, "share": lag_s / ttft_s, "share_high": CLIENT_SHARE,
                "worst_run": worst.id, "runs": len(late),
            },
            next="send from several processes, or from a machine of their own",
        )  # fmt: skip


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _same_plateau(evidence: Evidence) -> Iterator[Finding]:
    """Devices that differ by factors and stop at one throughput have something else in common: the client."""
    groups: dict[tuple, dict[str, list[Case]]] = {}
    for case in evidence.cases:
        r = case.record
        if r.output_tok_per_s and case.floor.get("output_tok_per_s") and r.load != "parallel_sampling":
            key = (r.source, r.model, r.load, r.length_spread)
            groups.setdefault(key, {}).setdefault(f"{r.gpu} x{r.n_gpus or 1}", []).append(case)
    for by_device in groups.values():
        tops = [top for runs in by_device.values() if (top := _plateau(runs)) is not None]
        tops = [c for c in tops if c.record.output_tok_per_s < FAR_FROM_FLOOR * c.floor["output_tok_per_s"]]
        if len(tops) < PLATEAU_GPUS or len(tops) < len(by_device):
            continue
        rates = [case.record.output_tok_per_s for case in tops]
        floors = [case.floor["output_tok_per_s"] for case in tops]
        if max(rates) <= SAME_PLATEAU * min(rates) and max(floors) >= UNLIKE_FLOORS * min(floors):
            yield Finding(
                check="validity.same_plateau", layer="validity", fault="F9", severity="warn", confidence="likely",
                runs=tuple(case.id for case in tops), metrics=RATES,
                says=f"throughput ends at {min(rates):.4g} to {max(rates):.4g} tokens/s on {len(tops)} devices alike,"
                f" whose data sheets differ by a factor of {max(floors) / min(floors):.1f}",
                evidence={
                    "plateau_low": min(rates), "plateau_high": max(rates), "same_within": SAME_PLATEAU,
                    "floor_ratio": max(floors) / min(floors), "floor_ratio_least": UNLIKE_FLOORS, "runs": len(tops),
                },
                next="watch the client's processor, send from several processes, look for timeouts",
            )  # fmt: skip


def _plateau(runs: Sequence[Case]) -> Case | None:
    """The run of the highest throughput, if that is nearly reached at half the highest load already."""
    top = max(runs, key=lambda case: case.record.output_tok_per_s)
    enough = [c for c in runs if c.record.output_tok_per_s >= NEAR_TOP * top.record.output_tok_per_s]
    highest = max(load_of(case.record) for case in runs)
    return top if min(load_of(case.record) for case in enough) <= highest / 2 else None
