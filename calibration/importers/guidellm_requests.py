"""The finished requests in a report of GuideLLM, and whether the report's summaries follow from them.

A time that a request does not have counts as 0 in the tool's summaries; here it is None.
"""

from __future__ import annotations

from dataclasses import dataclass

from calibration.importers.definitions import (
    TOLERANCE,
    Spread,
    agree,
    check_same,
    tpot_without_first,
    weighted_mean,
    weighted_quantiles,
)
from calibration.importers.fields import Fields
from simulator.errors import UserError

_TIMES = ("time_to_first_token_ms", "inter_token_latency_ms", "time_per_output_token_ms", "request_latency")


@dataclass(frozen=True)
class Request:
    """One finished request; None: the file does not have it (no stream). Times in milliseconds, e2e in seconds."""

    ttft_ms: float | None
    itl_ms: float | None
    tpot_ms: float | None
    e2e_s: float | None
    output_tok: float
    cached_tok: float = 0.0  # of the prompt

    @property
    def time_per_token_ms(self) -> float | None:
        """(last - first token) / (n - 1): as the file has it, or from the time per token that includes the first."""
        if self.output_tok <= 1:
            return None
        if self.itl_ms:
            return self.itl_ms
        if self.tpot_ms and self.ttft_ms is not None:
            return tpot_without_first(self.tpot_ms, self.ttft_ms, self.output_tok)
        return None


def read_requests(fields: Fields, finished: int) -> list[Request] | None:
    """Finished requests of the measured window, if the file has them all."""
    found = []
    start, end = fields.optional("start_time"), fields.optional("end_time")
    for request in fields.sections("requests.successful", "request"):
        begun, ended = request.optional("request_start_time"), request.optional("request_end_time")
        late = None not in (end, begun) and begun > end
        early = None not in (start, ended) and ended < start
        if not late and not early:
            times = (request.optional(name) for name in _TIMES)
            output, cached = (request.optional(f"{name}_tokens") or 0.0 for name in ("output", "cached"))
            found.append(Request(*times, output_tok=output, cached_tok=cached))
    return found if len(found) == finished else None


def check_summaries(where: str, requests: list[Request], ttft: Spread, itl: Spread, tpot: Spread, e2e: Spread) -> None:
    """The tool's summaries against its own requests, by the tool's own definitions and weights."""
    tokens = [r.output_tok for r in requests]
    between = [max(n - 1.0, 0.0) for n in tokens]
    ones = [1.0] * len(requests)
    for name, stated, values, weights in (
        ("time_to_first_token_ms", ttft, [r.ttft_ms or 0.0 for r in requests], ones),
        ("inter_token_latency_ms", itl, [r.itl_ms or 0.0 for r in requests], between),
        ("time_per_output_token_ms", tpot, [r.tpot_ms or 0.0 for r in requests], tokens),
        ("request_latency", e2e, [r.e2e_s or 0.0 for r in requests], ones),
    ):
        if sum(weights) > 0.0 and stated.mean is not None:
            _check_weighted(where, name, stated, values, weights)
    for request in requests:
        _check_identity(where, request)


def _check_weighted(where: str, name: str, stated: Spread, values: list[float], weights: list[float]) -> None:
    check_same(where, (f"{name}.successful.mean", stated.mean), ("the requests' mean", weighted_mean(values, weights)))
    for statistic, share in (("median", 0.5), ("p99", 0.99)):
        value = getattr(stated, statistic)
        low, high = weighted_quantiles(values, weights, share)
        if not (low <= value <= high or agree(value, low) or agree(value, high)):
            raise UserError(
                f"{where}: {name}.successful, its {statistic} is {value:.6g} but the requests give {low:.6g}, "
                f"expected the same to {TOLERANCE:.0%}"
            )


def _check_identity(where: str, request: Request) -> None:
    """Time per token with and without the first token must be two views of the same request."""
    if request.tpot_ms and request.itl_ms and request.ttft_ms is not None and request.output_tok > 1:
        without = tpot_without_first(request.tpot_ms, request.ttft_ms, request.output_tok)
        check_same(where, ("inter_token_latency_ms of a request", request.itl_ms),
                   ("time_per_output_token_ms without the first token", without))  # fmt: skip
