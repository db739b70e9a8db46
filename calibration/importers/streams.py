"""The lists per request that `vllm bench serve --save-detailed` and SGLang's `--output-details` write, in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from calibration.importers.definitions import (
    TOLERANCE,
    Spread,
    check_same,
    gaps_per_token,
    one_token_per_chunk,
    spread,
)
from calibration.importers.fields import Fields
from calibration.importers.row import Row
from simulator.errors import UserError

AT_ONCE = 0.1  # share of a burst's duration, or of its requests, by which it may miss being one


@dataclass(frozen=True)
class Streams:
    """Requests that completed: times [s], output tokens, gaps between stream chunks; `e2e_s` empty: not stated."""

    ttft_s: list[float]
    output_tok: list[float]
    input_tok: list[float]
    gaps_s: list[list[float]]
    e2e_s: list[float]

    @property
    def all_gaps_s(self) -> list[float]:
        """Gaps of all requests in one list."""
        return [gap for gaps in self.gaps_s for gap in gaps]

    @property
    def one_token_per_chunk(self) -> bool:
        """Whether gaps between chunks are gaps between tokens."""
        return one_token_per_chunk(len(self.all_gaps_s), sum(self.output_tok), len(self.output_tok))

    @property
    def shared_out(self) -> bool:
        """Whether gaps of chunks were shared out evenly among their tokens: clocks do not give equal gaps in a row."""
        pairs = [(one, next_) for gaps in self.gaps_s for one, next_ in pairwise(gaps)]
        return sum(one == next_ for one, next_ in pairs) > TOLERANCE * len(pairs)

    @property
    def fixed_lengths(self) -> bool:
        """Whether all prompts are of one length, and all outputs."""
        return len(set(self.input_tok)) == 1 and len(set(self.output_tok)) == 1

    def tpot(self) -> Spread:
        """(end - first token) / (n - 1) of requests with more than one token."""
        times = zip(self.e2e_s, self.ttft_s, self.output_tok)
        return spread([(end - first) / (tokens - 1) for end, first, tokens in times if tokens > 1])

    def to_last_chunk_s(self) -> list[float]:
        """Arrival to last chunk: first token and the gaps after it."""
        return [first + sum(gaps) for first, gaps in zip(self.ttft_s, self.gaps_s)]


def read_streams(fields: Fields) -> Streams | None:
    """The lists of one result, of the requests that completed; None when it was saved without them."""
    if not (fields.has("ttfts") and fields.has("output_lens") and fields.has("itls")):
        return None
    ttfts, outputs = fields.numbers("ttfts"), fields.numbers("output_lens")
    gaps = fields.number_lists("itls")
    inputs = fields.numbers("input_lens")
    ends = fields.numbers("latencies") if fields.has("latencies") else []
    for name, values in (("output_lens", outputs), ("itls", gaps), ("input_lens", inputs), ("latencies", ends)):
        if len(values) != len(ttfts) and (values or name != "latencies"):
            fields.refuse(name, f"has {len(values)} entries, expected {len(ttfts)} as in 'ttfts'")
    done = _completed(fields, outputs)
    return Streams(
        ttft_s=[ttfts[i] for i in done],
        output_tok=[outputs[i] for i in done],
        input_tok=[inputs[i] for i in done],
        gaps_s=[gaps[i] for i in done],
        e2e_s=[ends[i] for i in done] if ends else [],
    )


def _completed(fields: Fields, outputs: list[float]) -> list[int]:
    """Which requests completed: those with output, or, as some may have none, those without an error."""
    expected = fields.count("completed")
    done = [index for index, tokens in enumerate(outputs) if tokens > 0]
    if len(done) != expected and fields.has("errors"):
        errors = fields.entries("errors")
        done = [index for index in range(min(len(outputs), len(errors))) if not errors[index]]
    if len(done) != expected:
        fields.refuse("completed", f"is {expected}, expected {len(done)} as in 'output_lens'")
    return done


def summary(fields: Fields, name: str) -> Spread:
    """mean_, median_ and p99_ of a metric in milliseconds, as these tools name them; in milliseconds."""
    return Spread(*(fields.optional(f"{statistic}_{name}_ms") for statistic in ("mean", "median", "p99")))


def check_totals(fields: Fields, streams: Streams | None) -> tuple[float, float, float]:
    """Input tokens, output tokens and duration [s] of a run; its throughputs and lists must agree with them."""
    inputs, outputs = fields.positive("total_input_tokens"), fields.positive("total_output_tokens")
    duration = fields.positive("duration")
    check_same(fields.where, ("output_throughput", fields.positive("output_throughput")),
               ("total_output_tokens / duration", outputs / duration))  # fmt: skip
    both = ("(total_input_tokens + total_output_tokens) / duration", (inputs + outputs) / duration)
    for name in ("total_token_throughput", "total_throughput"):
        check_same(fields.where, (name, fields.optional(name)), both)
    if streams is not None:
        check_same(fields.where, ("total_output_tokens", outputs), ("the sum of output_lens", sum(streams.output_tok)))
        check_same(fields.where, ("total_input_tokens", inputs), ("the sum of input_lens", sum(streams.input_tok)))
    return inputs, outputs, duration


def limit_reached(fields: Fields, rate: float | None) -> int | None:
    """The client's limit of requests at a time; None without one, or where arrivals at a rate never came up to it."""
    limit, peak = fields.optional_count("max_concurrency"), fields.optional("max_concurrent_requests")
    return None if limit is None or (rate is not None and peak is not None and peak < limit) else limit


def check_at_once(row: Row, fields: Fields) -> None:
    """Mark a run that looks like a burst, its rate being infinite, whose requests did not come at once.

    The tools replay traces under an infinite rate, too; a burst has all its requests under way at its start.
    """
    if row.columns.get("load") != "burst":
        return
    peak, completed = fields.optional("max_concurrent_requests"), fields.count("completed")
    starts = [time for time in fields.numbers("start_times") if time] if fields.has("start_times") else []
    late = bool(starts) and max(starts) - min(starts) > AT_ONCE * fields.positive("duration")
    if late or (peak is not None and peak < (1.0 - AT_ONCE) * completed):
        row.mark("ambiguous:arrivals_not_at_once")


def refuse_without_text(fields: Fields) -> None:
    """UserError for runs of servers that embed, score or rank: these tools have one file format for them, too."""
    backend = fields.get("backend")
    words = ("embedding", "pooling", "rerank", "score", "classify")
    if fields.has("total_input_sequences") or (isinstance(backend, str) and any(word in backend for word in words)):
        raise UserError(f"{fields.where}: is a run of a server that writes no text, expected generated tokens")


def put_gaps(row: Row, streams: Streams | None, speculative: bool) -> None:
    """ITL, if gaps between chunks are known to be gaps between tokens; else the reason why it stays empty."""
    if speculative:
        row.leave_empty("itl_s_*", "gaps between chunks, several tokens each under speculative decoding")
    elif streams is None:
        row.leave_empty("itl_s_*", "gaps between chunks, tokens per chunk not stated without lists per request")
    elif not streams.one_token_per_chunk:
        row.chunks_of(gaps_per_token(len(streams.all_gaps_s), sum(streams.output_tok), len(streams.output_tok)))
    elif streams.shared_out:
        row.convert("itl_s_mean", spread(streams.all_gaps_s).mean, "from gaps of chunks shared out among their tokens")
        row.leave_empty("itl_s_median+itl_s_p99", "the client shared a chunk's gap out evenly among its tokens")
    else:
        row.convert_spread("itl_s", spread(streams.all_gaps_s), "from gaps between chunks of one token each")
