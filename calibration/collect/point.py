"""What is measured and what a measurement gives: the words that all back-ends share.

Times are seconds on one monotonic clock per run, counts are tokens. None always means "not known", never zero.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from simulator.errors import UserError

DISTURBED = "disturbed: "  # how a note begins that says other work on the machine held up the run


class BackendError(UserError):
    """A run that could not be measured, or was cut: the message is one sentence with the reason."""


@dataclass(frozen=True)
class Point:
    """One run to measure.

    `load` is a load of the schema: static_batch, closed_loop, burst or open_loop. `concurrency` is the batch size or
    the number of clients; an open loop has none, and there it is 1. `repeat` numbers A/A repeats of one configuration.
    A `held_out` point is measured for validation and never fitted. `cuda_graphs` None leaves the choice to the engine.

    `length_spread` is that of the schema. Where lengths come from a trace, `input_tok` and `output_tok` are their
    means and `longest_tok` is what the longest request holds at its end. An open loop over a trace without a
    `request_rate_rps` keeps the times of the trace.
    """

    load: str
    concurrency: int
    input_tok: int
    output_tok: int
    num_requests: int
    request_rate_rps: float | None = None
    repeat: int = 0
    cuda_graphs: bool | None = None
    held_out: bool = False
    length_spread: str = "fixed"
    longest_tok: int | None = None  # None: all are alike

    @property
    def most_tok(self) -> int:
        """Prompt and answer of the longest request."""
        return self.longest_tok or self.input_tok + self.output_tok

    @property
    def key(self) -> str:
        """Stable text that identifies the point in a journal, e.g. "static_batch c4 i512 o64 r0"."""
        return f"{self.configuration} r{self.repeat}"

    @property
    def configuration(self) -> str:
        """The key without the number of the repeat: equal for A/A repeats."""
        clients = [] if self.load == "open_loop" else [f"c{self.concurrency}"]
        parts = [self.load, *clients, f"i{self.input_tok}", f"o{self.output_tok}"]
        if self.num_requests != self.concurrency:
            parts.append(f"n{self.num_requests}")
        if self.request_rate_rps is not None:
            parts.append(f"q{self.request_rate_rps!r}")
        if self.cuda_graphs is not None:
            parts.append("graphs" if self.cuda_graphs else "eager")
        if self.length_spread != "fixed":
            parts.append(self.length_spread.removeprefix("dataset:"))
        return " ".join(parts)


@dataclass(frozen=True)
class RequestTimes:
    """One request as the client saw it.

    `token_s` holds the arrival of each token, or of each chunk: then `tokens_per_event` says how many tokens came in
    it, or is None where that is not known. `status` is "ok", "failed: REASON" or "cut" (the run ended before the
    request did). `due_s`: when it was to be sent. `asked_tok`: tokens that were asked for; None: as many as the point
    says.
    """

    send_s: float
    token_s: tuple[float, ...]
    input_tok: int
    output_tok: int
    status: str = "ok"
    cached_tok: int | None = None
    tokens_per_event: tuple[int, ...] | None = None
    due_s: float | None = None
    asked_tok: int | None = None


@dataclass(frozen=True)
class Observation:
    """What one run gave: its requests, the measured window, and the engine's steps where the back-end sees them.

    `client_queue_s`: how long something that was ready had to wait for its turn in the client (median).
    """

    requests: tuple[RequestTimes, ...]
    start_s: float
    end_s: float
    steps_s: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
    client_queue_s: float | None = None


@dataclass(frozen=True)
class EngineFacts:
    """The engine's resolved configuration. None: unknown, and records leave the cell empty.

    `settings` uses vLLM's names: max_num_seqs, max_num_batched_tokens, max_model_len, gpu_memory_utilization,
    prefix_caching, chunked_prefill, cuda_graphs, num_gpu_blocks, block_size, and what else the engine reports.
    `versions` names software: torch, cuda, driver. `model_config` is the content of config.json.
    """

    engine: str
    engine_version: str | None
    model: str
    model_config: dict[str, Any]
    weight_dtype: str | None
    activation_dtype: str | None
    kv_dtype: str | None
    settings: dict[str, Any]
    tp: int = 1
    pp: int = 1
    n_gpus: int = 1
    versions: dict[str, str] = field(default_factory=dict)


def seed_of(text: str) -> int:
    """A seed of 31 bits, the same for the same text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


class Backend(Protocol):
    """Something that serves requests and can be measured."""

    def facts(self) -> EngineFacts:
        """The resolved configuration, as far as the engine tells it."""
        ...

    def run(self, point: Point, seed: int) -> Observation:
        """One measured run. BackendError with a reason when it cannot be measured."""
        ...

    def warm_up(self, point: Point) -> None:
        """Run what `point` needs once, unmeasured."""
        ...

    def close(self) -> None:
        """Give back memory, processes and connections."""
        ...
