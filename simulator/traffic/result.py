"""The answer to a question about traffic, and what it was computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from simulator.profile import Z90
from simulator.result import plain
from simulator.traffic import frames
from simulator.traffic.metrics import Goodput, last_arrival_s, traffic_metrics, waiting_when_overloaded
from simulator.traffic.served import Served

INTERVALS = {  # headline number -> kind of spread that it has
    "ttft_s_mean": "ttft", "ttft_s_p50": "ttft", "ttft_s_p90": "ttft", "ttft_s_p99": "ttft",
    "tpot_s_mean": "tpot", "tpot_s_p50": "tpot", "tpot_s_p90": "tpot", "tpot_s_p99": "tpot",
    "itl_s_mean": "tpot", "itl_s_p50": "tpot", "itl_s_p90": "tpot", "itl_s_p99": "tpot",
    "e2e_s_mean": "time", "e2e_s_p50": "time", "e2e_s_p90": "time", "e2e_s_p99": "time",
    "mean_power_w": "power",
    "energy_j": "energy", "energy_j_per_output_tok": "energy", "energy_j_per_request": "energy",
}  # fmt: skip
THROUGHPUTS = ("requests_per_s", "output_tok_per_s", "total_tok_per_s")


@dataclass(frozen=True)
class TrafficResult:
    """One run of traffic on a server of `replicas` replicas.

    `interval_log_sd` is the standard deviation of log(measured / predicted) that the calibration states, by kind
    ("ttft", "tpot", "time", "power", "energy"): a 90 % interval is value * exp(+-Z90 * sd). It covers the error of the
    calibration on runs like those it was fitted on. It does not cover the sampling of arrivals and lengths (another
    seed), and near saturation queueing amplifies an error of speed beyond it.
    """

    gpu: str
    gpu_name: str  # of all devices of all replicas: "4 x NVIDIA L4"
    power_mode: str | None
    model: str
    parameters: int
    precision: dict[str, str]
    traffic: str  # title of the traffic
    calibration: dict[str, Any]  # id, title, engine, status, source, extrapolated: list of sentences, ...
    interval_log_sd: dict[str, float]
    memory: dict[str, float]  # of one device: weights_byte, kv_byte_per_tok, kv_capacity_tok, capacity_byte, ...
    price: dict[str, Any]  # usd_per_hour and usd_per_kwh of all replicas, and how they were derived
    assumptions: tuple[str, ...]
    seed: int
    served: Served
    version: str = ""
    power: dict[str, float] = field(default_factory=dict)  # limit_w and idle_w in force, of all replicas
    settings: dict[str, Any] = field(default_factory=dict)  # engine settings in force
    parallel: dict[str, int] = field(default_factory=dict)  # tp, pp, ep of one replica
    replicas: int = 1
    routing: str = "round_robin"
    clients: int = 0  # of a closed loop; 0: requests arrive by themselves
    speculative: dict[str, Any] | None = None
    goodput: Goodput | None = None

    def interval(self, value: float, kind: str = "time") -> tuple[float, float]:
        """90 % interval of a single number under the calibration's uncertainty, in the number's own unit."""
        factor = self._factor(kind)
        return value / factor, value * factor

    def _factor(self, kind: str) -> float:
        return math.exp(Z90 * self.interval_log_sd[kind])

    def throughput_interval(self, value: float) -> tuple[float, float]:
        """90 % interval of a rate over the whole run.

        A server that falls behind, or whose clients wait for it, sets the pace, so its rate is as uncertain as its
        speed. Where requests arrive by themselves and the queue does not grow, they set the pace, and only the time
        after the last arrival is uncertain.
        """
        end, arrived = self.served.end_s, last_arrival_s(self.served.requests)
        paced = 0.0 if self.clients or self.overloaded() or not arrived > 0.0 else min(arrived, end)
        factor = self._factor("time")
        slow, fast = (paced + (end - paced) * scale for scale in (factor, 1.0 / factor))
        return (value * end / slow, value * end / fast) if fast > 0.0 else (value, value)

    def overloaded(self) -> int:
        """Requests that were waiting when the last one arrived, if the queue had been growing all along; else 0."""
        return 0 if self.clients else waiting_when_overloaded(self.served.requests)

    def summary(self) -> dict[str, float]:
        """The headline numbers, flat, units in the keys; `_lo` and `_hi` are ends of 90 % intervals."""
        out: dict[str, float] = traffic_metrics(self.served, self.goodput)
        for name, kind in INTERVALS.items():
            out[f"{name}_lo"], out[f"{name}_hi"] = self.interval(out[name], kind)
        for name in THROUGHPUTS:
            out[f"{name}_lo"], out[f"{name}_hi"] = self.throughput_interval(out[name])
        usd = self.cost_usd(out["duration_s"], out["energy_j"])
        written, answered = out["output_tok"], out["completed"]
        out["cost_usd"] = usd
        out["usd_per_million_output_tok"] = usd / written * 1e6 if written else math.nan
        out["usd_per_request"] = usd / answered if answered else math.nan
        out["overloaded_waiting"] = self.overloaded()
        return out

    def cost_usd(self, duration_s: float, energy_j: float) -> float:
        """Price of all replicas for so long, and of so much electricity; NaN without a price."""
        return duration_s / 3600.0 * self.price["usd_per_hour"] + energy_j / 3.6e6 * self.price["usd_per_kwh"]

    def to_dict(self, detail: bool = False) -> dict[str, Any]:
        """Everything but the records as plain JSON types; `detail`: one object per request as well."""
        served = self.served
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("served", "goodput")}
        limits = self.goodput.limits() if self.goodput else {}
        server = {name: getattr(served, name) for name in ("kv_blocks", "block_size", "idle_power_w", "roles", "end_s")}
        out = {"summary": self.summary(), **facts, "goodput": limits, "server": server}
        if detail:
            out["requests"] = list(frames.rows(frames.request_columns(served.requests)))
        return plain(out)

    def to_frame(self):
        """One row per request as a pandas DataFrame (optional extra `frames`)."""
        return frames.request_frame(self.served)

    def steps_frame(self):
        """One row per stretch of equal engine steps as a pandas DataFrame (optional extra `frames`)."""
        return frames.step_frame(self.served)
