"""The lists per request that `vllm bench serve --save-detailed` and SGLang's `--output-details` write, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.importers.definitions import Spread, check_same, gaps_per_token, one_token_per_chunk, spread
from calibration.importers.fields import Fields
from calibration.importers.row import Row
from simulator.errors import UserError


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
    """The lists of one result; None when it was saved without them. A request without output tokens failed."""
    if not (fields.has("ttfts") and fields.has("output_lens") and fields.has("itls")):
        return None
    ttfts, outputs = fields.numbers("ttfts"), fields.numbers("output_lens")
    gaps = fields.number_lists("itls")
    inputs = fields.numbers("input_lens")
    ends = fields.numbers("latencies") if fields.has("latencies") else []
    for name, values in (("output_lens", outputs), ("itls", gaps), ("input_lens", inputs), ("latencies", ends)):
        if len(values) != len(ttfts) and (values or name != "latencies"):
            fields.refuse(name, f"has {len(values)} entries, expected {len(ttfts)} as in 'ttfts'")
    done = [index for index, tokens in enumerate(outputs) if tokens > 0]
    if not done:
        raise UserError(f"{fields.where}: field 'output_lens' has no request with output, expected completed requests")
    return Streams(
        ttft_s=[ttfts[i] for i in done],
        output_tok=[outputs[i] for i in done],
        input_tok=[inputs[i] for i in done],
        gaps_s=[gaps[i] for i in done],
        e2e_s=[ends[i] for i in done] if ends else [],
    )


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


def put_gaps(row: Row, streams: Streams | None, speculative: bool) -> None:
    """ITL, if gaps between chunks are known to be gaps between tokens; else the reason why it stays empty."""
    if speculative:
        row.leave_empty("itl_s_*", "gaps between chunks, several tokens each under speculative decoding")
    elif streams is None:
        row.leave_empty("itl_s_*", "gaps between chunks, tokens per chunk not stated without lists per request")
    elif streams.one_token_per_chunk:
        row.convert_spread("itl_s", spread(streams.all_gaps_s), "from gaps between chunks of one token each")
    else:
        share = gaps_per_token(len(streams.all_gaps_s), sum(streams.output_tok), len(streams.output_tok))
        row.leave_empty("itl_s_*", f"gaps between chunks, {share:.3g} of them per token")
