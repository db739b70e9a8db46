"""What a simulated flight leaves behind: call records, per-seed flights and the result that is reported."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from simulator.profile import Z90


@dataclass(frozen=True)
class CallRecord:
    """One generation call as the server saw it. Times in seconds since the start of the flight."""

    call_id: int
    label: str  # the strategy's own word for the call: "draft", "distill", "answer"
    submitted_s: float
    scheduled_s: float  # first step that computed a token of it
    first_token_s: float
    finished_s: float
    prompt_tok: int
    cached_tok: int  # prompt tokens served from the prefix cache
    output_tok: int
    parents: tuple[int, ...] = ()  # calls whose completion this one waited for (empty: started with the flight)
    preemptions: int = 0  # times it was thrown out for want of KV blocks
    recomputed_tok: int = 0  # tokens computed again because of that
    engine: str = ""  # which engine served it: empty for the only one, else "main", "main 2", a role's name
    stopped: bool = False  # ended by the strategy before its length
    prefilled_tok: int = 0  # prompt tokens computed; less than prompt - cached where it was stopped before

    @property
    def read_tok(self) -> int:
        """Prompt tokens that it really read: all of them, unless it was stopped before."""
        return self.cached_tok + self.prefilled_tok

    @property
    def ttft_s(self) -> float:
        """Submission to first token, queueing included."""
        return self.first_token_s - self.submitted_s

    @property
    def tpot_s(self) -> float | None:
        """(last - first token) / (output_tok - 1); None for a one-token output."""
        if self.output_tok < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tok - 1)


@dataclass(frozen=True)
class WaitRecord:
    """One external wait. Times in seconds since the start of the flight; numbers are shared with the calls."""

    call_id: int
    label: str
    started_s: float
    finished_s: float
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class QuestionRecord:
    """One question of a set: its time on the engines, and its tokens."""

    problem_tok: int
    started_s: float  # when work on it began
    finished_s: float
    calls: int
    critical_path_tok: int
    written_tok: int
    b_seq_tok: int
    b_total_tok: int

    @property
    def latency_s(self) -> float:
        """From the start of work on it to its answer."""
        return self.finished_s - self.started_s


@dataclass(frozen=True)
class EngineUse:
    """What one of several engines did in a flight."""

    engine: str
    calls: int
    read_tok: int
    computed_tok: int
    written_tok: int
    busy_s: float
    peak_kv_tok: int
    peak_running: int


@dataclass(frozen=True)
class Flight:
    """One repetition of a schedule (one seed)."""

    seed: int
    wall_s: float
    energy_j: float
    critical_path_tok: int  # output tokens on the longest (in tokens) chain of dependent calls
    read_tok: int  # prompt tokens of all calls
    computed_tok: int  # prompt tokens really prefilled: read - served from the prefix cache
    written_tok: int  # output tokens of all calls
    b_seq_tok: int  # input + output tokens of the calls on the accepted path (PDR's B_seq)
    b_total_tok: int  # input + output tokens of every call (PDR's B_total)
    peak_kv_tok: int  # distinct KV tokens held at the fullest moment, in whole blocks
    peak_running: int  # most sequences in one step
    shares_s: dict[str, float]  # seconds by cause; sums to busy time (wall - idle)
    calls: tuple[CallRecord, ...]
    power_times_s: np.ndarray  # edges of the power trace, shape (k + 1,)
    power_w: np.ndarray  # mean power between edges, shape (k,)
    reread_tok: int = 0  # prompt tokens that an earlier call had already read or written, cache hits included
    joins_kv: bool = False  # whether any call attends to the KV of others
    waits: tuple[WaitRecord, ...] = ()  # external ones
    questions: tuple[QuestionRecord, ...] = ()  # of a set that was worked on one by one
    engines: tuple[EngineUse, ...] = ()  # where there are several

    @property
    def mean_power_w(self) -> float:
        """Energy over wall time."""
        return self.energy_j / self.wall_s if self.wall_s > 0 else 0.0

    def critical_path(self) -> tuple[CallRecord | WaitRecord, ...]:
        """What held up the end: from the last call or wait to finish, back over the last parent to finish."""
        by_id = {node.call_id: node for node in (*self.calls, *self.waits)}
        chain: list[CallRecord | WaitRecord] = []
        waited_for = list(by_id.values())
        while waited_for:
            chain.append(max(waited_for, key=lambda node: (node.finished_s, node.call_id)))
            waited_for = [by_id[parent] for parent in chain[-1].parents if parent in by_id]
        return tuple(chain)

    def critical_calls(self) -> tuple[CallRecord, ...]:
        """The calls on `critical_path`."""
        return tuple(node for node in self.critical_path() if isinstance(node, CallRecord))

    @property
    def wait_s(self) -> float:
        """Seconds of all external waits together."""
        return sum(wait.finished_s - wait.started_s for wait in self.waits)


@dataclass(frozen=True)
class SimulationResult:
    """All repetitions of one question, and what they were computed from.

    `interval_log_sd` is the standard deviation of log(measured / predicted) that the calibration states for
    times and for energy: a 90 % interval is value * exp(+-Z90 * sd).
    """

    gpu: str
    gpu_name: str
    power_mode: str | None
    model: str
    parameters: int
    precision: dict[str, str]
    strategy: str
    strategy_parameters: dict[str, Any]
    calibration: dict[str, Any]  # id, title, engine, source hash, extrapolated: list of sentences
    interval_log_sd: dict[str, float]  # keys "time", "energy"
    memory: dict[str, float]  # weights_byte, kv_byte_per_tok, kv_capacity_tok, capacity_byte, ...
    price: dict[str, Any]  # usd_per_hour and how it was derived
    assumptions: tuple[str, ...]
    seed: int
    flights: tuple[Flight, ...]
    version: str = ""
    power: dict[str, float] = field(default_factory=dict)  # limit_w and idle_w in force
    settings: dict[str, Any] = field(default_factory=dict)  # engine settings in force
    parallel: dict[str, int] = field(default_factory=dict)  # tp, pp, ep, dp
    idealized: dict[str, float] = field(default_factory=dict)  # idealized runtime, where it was asked for
    other_gpus: tuple[str, ...] = ()  # those on which roles are played

    def hardware(self) -> str:
        """The GPUs in words: with the power mode of the main one."""
        mode = f" ({self.power_mode})" if self.power_mode else ""
        return " + ".join((f"{self.gpu_name}{mode}", *self.other_gpus))

    def values(self, name: str) -> np.ndarray:
        """Attribute `name` of every flight as a float array of shape (repetitions,)."""
        return np.array([getattr(flight, name) for flight in self.flights], dtype=float)

    def call_values(self, name: str) -> np.ndarray:
        """Attribute `name` of every call of every flight, None left out."""
        found = (getattr(call, name) for flight in self.flights for call in flight.calls)
        return np.array([value for value in found if value is not None], dtype=float)

    def interval(self, value: float, kind: str = "time") -> tuple[float, float]:
        """90 % interval of a single number under the calibration's uncertainty, in the number's own unit."""
        factor = float(np.exp(Z90 * self.interval_log_sd[kind]))
        return value / factor, value * factor

    def peak_memory_byte(self) -> float:
        """Weights, activations and engine overhead plus KV cache and recurrent state at their fullest.

        Of the main model's GPU; with what models that play roles take there.
        """
        fixed = self.memory["weights_byte"] + self.memory["activation_byte"] + self.memory["overhead_byte"]
        fixed += self.memory.get("roles_byte", 0.0)
        state = self.memory.get("state_byte_per_sequence", 0.0) * float(self.values("peak_running").max())
        return fixed + state + self.memory["kv_byte_per_tok"] * float(self.values("peak_kv_tok").max())

    def summary(self) -> dict[str, float]:
        """The headline numbers, flat, units in the keys; percentiles are over repetitions."""
        wall, energy = self.values("wall_s"), self.values("energy_j")
        usd = wall / 3600.0 * self.price["usd_per_hour"] + energy / 3.6e6 * self.price["usd_per_kwh"]
        ttft, tpot = self.call_values("ttft_s"), self.call_values("tpot_s")
        out = {f"wall_s_p{q}": float(np.percentile(wall, q)) for q in (50, 90, 99)}
        out["wall_s_lo"], out["wall_s_hi"] = self.interval(out["wall_s_p50"])
        for name in ("critical_path", "read", "computed", "written", "reread", "b_seq", "b_total"):
            out[f"{name}_tok_p50"] = float(np.median(self.values(f"{name}_tok")))
        for name, found in (("ttft_s", ttft), ("tpot_s", tpot)):
            for q in (50, 90):
                out[f"{name}_p{q}"] = float(np.percentile(found, q)) if len(found) else float("nan")
        if any(flight.waits for flight in self.flights):
            out["wait_s_p50"] = float(np.median(self.values("wait_s")))
        out |= self._question_figures()
        out["peak_memory_byte"] = self.peak_memory_byte()
        out["mean_power_w"] = float(energy.sum() / wall.sum()) if wall.sum() > 0 else 0.0
        out["energy_j_p50"] = float(np.median(energy))
        out["energy_j_lo"], out["energy_j_hi"] = self.interval(out["energy_j_p50"], "energy")
        out["cost_usd_p50"] = float(np.median(usd))
        written = self.values("written_tok").sum()
        out["energy_j_per_output_tok"] = float(energy.sum() / written) if written > 0 else float("nan")
        out["output_tok_per_s"] = float(written / wall.sum()) if wall.sum() > 0 else float("nan")
        return out

    def _question_figures(self) -> dict[str, float]:
        """Of a set of questions that were worked on one by one: how long each took, and how many get done."""
        latency = np.array([q.latency_s for flight in self.flights for q in flight.questions])
        if not len(latency):
            return {}
        out = {f"question_s_p{q}": float(np.percentile(latency, q)) for q in (50, 90, 99)}
        out["questions_per_s"] = len(latency) / float(self.values("wall_s").sum())
        return out

    def shares(self) -> dict[str, float]:
        """Fraction of the summed busy time by cause, over all repetitions; sums to 1."""
        total: dict[str, float] = {}
        for flight in self.flights:
            for cause, seconds in flight.shares_s.items():
                total[cause] = total.get(cause, 0.0) + seconds
        whole = sum(total.values())
        return {cause: seconds / whole for cause, seconds in total.items()} if whole > 0 else total

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types, flights and calls included."""
        return plain({"summary": self.summary(), "bottleneck_share": self.shares(), **asdict(self)})

    def to_frame(self):
        """One row per call as a pandas DataFrame (optional extra `frames`)."""
        import pandas  # heavy and optional: only here

        rows = [
            {"seed": flight.seed, **asdict(call), "ttft_s": call.ttft_s, "tpot_s": call.tpot_s}
            for flight in self.flights
            for call in flight.calls
        ]
        return pandas.DataFrame(rows)


def plain(value: Any) -> Any:
    """`value` in JSON's types: arrays and tuples as lists, numpy's numbers as Python's."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value
