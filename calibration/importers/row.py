"""The record that an importer builds: columns of the schema, and flags that say what was converted and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from calibration.importers.definitions import SEVERAL, Spread, agree, check_plausible
from calibration.records import METRICS
from simulator.errors import UserError

COUNTS = ("n_gpus", "tp", "pp", "ep", "dp", "max_num_seqs", "max_num_batched_tokens", "max_model_len", "num_requests")
# Smallest and largest value that `read_records` takes.
BOUNDS = (
    dict.fromkeys(METRICS, (1e-9, 1e12))
    | dict.fromkeys((*COUNTS, "concurrency", "input_tok", "output_tok"), (1, 1e9))
    | {"gpu_memory_utilization": (1e-6, 1.0), "request_rate_rps": (1e-9, 1e9), "rel_noise": (0.0, 10.0)}
)
FAILED_SHARE = 0.01  # with more failed requests than this the survivors were measured under another load


@dataclass(frozen=True)
class Skipped:
    """A result that cannot become a record, and why."""

    where: str
    reason: str


@dataclass
class Row:
    """One record under construction. What is not stated stays out of `columns`."""

    where: str
    source: str  # the record's `source`: which tool wrote the file
    completed: int | None = None  # requests that the times are of, where they are those of the whole run
    columns: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)

    def state(self, **columns: Any) -> None:
        """Columns as the file states them; None: it does not."""
        self.columns |= {name: value for name, value in columns.items() if value is not None}

    def convert(self, name: str, value: Any, how: str) -> None:
        """A column that the file states by another definition or unit; `how` goes into the flags."""
        if value is not None:
            self.columns[name] = value
            self.mark(f"converted:{name}:{how}")

    def derive(self, name: str, value: Any, how: str = "") -> None:
        """A column that follows from others of the file."""
        if value is not None:
            self.columns[name] = value
            self.mark(f"derived:{name}:{how}" if how else f"derived:{name}")

    def convert_spread(self, family: str, values: Spread, how: str) -> None:
        """Mean, median and p99 of a family of columns ("ttft_s"), in seconds."""
        self._put_spread("converted", family, values, how)

    def derive_spread(self, family: str, values: Spread, how: str) -> None:
        """The same for a family that the file does not sum up itself."""
        self._put_spread("derived", family, values, how)

    def leave_empty(self, name: str, reason: str) -> None:
        """Say why a column stays empty although the file has something like it."""
        self.mark(f"empty:{name}:{reason}")

    def mark(self, flag: str) -> None:
        """Add a flag once; ";" separates flags, so it cannot stand in one."""
        clean = " ".join(flag.replace(";", ",").split())
        if clean not in self.flags:
            self.flags.append(clean)

    def failures(self, failed: float, total: float) -> None:
        """Note requests that failed, were cut or did not finish."""
        if failed > 0:
            self.mark(f"failed:{failed:g} of {total:g}")
            if failed > FAILED_SHARE * total:
                self.mark("suspect:failed_requests")

    def chunks_of(self, gaps_per_token: float) -> None:
        """Leave ITL empty, chunks holding several tokens; far too many of them may be speculative decoding."""
        self.leave_empty("itl_s_*", f"gaps between chunks, {gaps_per_token:.3g} of them per token")
        if gaps_per_token < SEVERAL:
            self.mark("ambiguous:several_tokens_per_chunk")

    def not_streamed(self, stated: Spread) -> bool:
        """Whether a TPOT of 0 for several tokens says that they came at once; then the file's TTFT is none either."""
        at_once = stated.mean == 0.0 and self.columns["output_tok"] > 1.0
        if at_once:
            self.leave_empty("ttft_s_*", "answers were not streamed")
        return at_once

    def speculative(self, what: str) -> None:
        """Speculative decoding: several tokens per step, which no model of plain decoding may be held against."""
        self.mark(f"speculative:{what}")
        self.mark("suspect:speculative_decoding")

    def _put_spread(self, verb: str, family: str, values: Spread, how: str) -> None:
        found = values.items()
        self.columns |= {f"{family}_{name}": value for name, value in found}
        if found:
            name = f"{family}_{found[0][0]}" if len(found) == 1 else f"{family}_*"
            self.mark(f"{verb}:{name}:{how}")

    def checked(self) -> Row:
        """This row, its values possible. UserError that names the column else."""
        for name, (low, high) in BOUNDS.items():
            value = self.columns.get(name)
            if value is not None and not low <= value <= high:
                raise UserError(
                    f"{self.where}: {name} would be {value:.6g}, expected a number from {low:g} to {high:g}"
                )
        for family in ("ttft_s", "tpot_s", "itl_s", "e2e_s"):
            for statistic in ("mean", "median", "p99"):
                if (value := self.columns.get(f"{family}_{statistic}")) is not None:
                    check_plausible(self.where, family, statistic, value)
        self._check_against_duration()
        return self

    def _check_against_duration(self) -> None:
        """No request takes longer than its run, and clients cannot be busy for longer than the run either."""
        duration = self.columns.get("duration_s")
        if duration is None or self.completed is None:
            return
        for name in ("ttft_s_mean", "ttft_s_median", "e2e_s_mean", "e2e_s_median"):
            value = self.columns.get(name, 0.0)
            if value > duration and not agree(value, duration):
                raise UserError(
                    f"{self.where}: {name} would be {value:.6g} s in a run of {duration:.6g} s, expected less; "
                    "milliseconds and seconds seem to be mixed up"
                )
        clients, mean = self.columns.get("concurrency"), self.columns.get("e2e_s_mean")
        if self.columns.get("load") == "closed_loop" and clients and mean:
            busy = self.completed * mean
            if busy > clients * duration and not agree(busy, clients * duration):
                raise UserError(
                    f"{self.where}: {self.completed} requests of {mean:.4g} s keep {clients:g} clients busy beyond "
                    f"the run of {duration:.6g} s, expected the reverse; units or concurrency are wrong"
                )


def put_load(
    row: Row, requests: int, clients: int | None = None, rate: float | None = None, poisson: bool = True
) -> None:
    """How requests arrived, in the schema's words. `rate`: 1/s, None: as fast as possible; `clients`: limit at a time.

    Loads that the schema has no word for get the nearest one and an `ambiguous:` flag, so that nothing is fitted to
    them: even or bursty arrivals, and a rate together with a limit that holds requests back at the client.
    """
    row.state(num_requests=requests)
    if rate is not None:
        row.state(load="open_loop", request_rate_rps=rate)
        if not poisson:
            row.mark("ambiguous:arrivals_not_poisson")
        if clients is not None:
            row.mark(f"ambiguous:rate_with_limit_of_{clients}_at_a_time")
    elif clients is None or 1 < requests <= clients:
        row.state(load="burst")
    else:
        row.state(load="closed_loop", concurrency=float(clients))
