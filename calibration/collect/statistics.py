"""The metrics of the schema from what clients saw: the project's definitions, one function each.

A run's requests share one clock. Several runs of one point are taken together: latencies over all their requests,
rates over the sum of their windows. Requests that failed or were cut count in no latency.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.collect.point import Observation, RequestTimes

PERCENTILE = 99.0


def latencies(observations: Sequence[Observation]) -> dict[str, float]:
    """ttft, tpot, itl and e2e in seconds: mean, median and p99; a metric without any value is left out.

    ttft: sending to first token. tpot: (last token - first token) / (output tokens - 1), per request. itl: gaps
    between successive tokens, over all tokens of all requests. e2e: sending to last token.
    """
    complete = [r for o in observations for r in o.requests if r.status == "ok" and r.token_s]
    several = [r for r in complete if r.output_tok > 1]
    found = {
        "ttft_s": np.array([r.token_s[0] - r.send_s for r in complete]),
        "tpot_s": np.array([(r.token_s[-1] - r.token_s[0]) / (r.output_tok - 1) for r in several]),
        "e2e_s": np.array([r.token_s[-1] - r.send_s for r in complete]),
    }
    out: dict[str, float] = {}
    for name, values in found.items():
        if len(values):
            out |= _three(name, values)
    return out | token_gaps(several)


def _three(name: str, values: np.ndarray) -> dict[str, float]:
    return {
        f"{name}_mean": float(values.mean()),
        f"{name}_median": float(np.median(values)),
        f"{name}_p99": float(np.percentile(values, PERCENTILE)),
    }


def in_chunks(observations: Sequence[Observation]) -> bool:
    """Whether several tokens arrived at once: then single gaps between tokens were not seen.

    Also where nobody says how many each chunk held, but there were fewer chunks than tokens.
    """
    return any(
        max(r.tokens_per_event) > 1 if r.tokens_per_event else len(r.token_s) < r.output_tok
        for o in observations
        for r in o.requests
        if r.status == "ok"
    )


def token_gaps(requests: Sequence[RequestTimes]) -> dict[str, float]:
    """itl in seconds. Where tokens come in chunks only the mean is a number of tokens, not of chunks."""
    gaps = [np.diff(np.asarray(r.token_s)) for r in requests]
    total = sum(float(g.sum()) for g in gaps)
    tokens = sum(r.output_tok - 1 for r in requests)
    if not tokens or not total > 0.0:
        return {}
    if sum(len(g) for g in gaps) < tokens:
        return {"itl_s_mean": total / tokens}
    return _three("itl_s", np.concatenate(gaps))


def rates(observations: Sequence[Observation]) -> dict[str, float]:
    """Tokens per second over the windows, and duration_s, the mean window.

    A token counts in the window in which it arrived, a prompt in that of its first token. Where no request writes more
    than one token there is no rate of writing: such runs are prompts alone, and ttft tells all.
    """
    seconds = window_s(observations)
    if seconds <= 0.0:
        return {}
    written, read = tokens(observations)
    out = {"duration_s": seconds / len(observations)}
    if any(r.output_tok > 1 for o in observations for r in o.requests) and written:
        out |= {"output_tok_per_s": written / seconds, "total_tok_per_s": (written + read) / seconds}
    return out


def window_s(observations: Sequence[Observation]) -> float:
    """Seconds of all windows together."""
    return sum(o.end_s - o.start_s for o in observations)


def tokens(observations: Sequence[Observation]) -> tuple[float, int]:
    """(tokens written, prompt tokens read) within the windows; where chunks are not told apart all hold as many."""
    written = read = 0
    for o in observations:
        for r in o.requests:
            even = r.output_tok / max(1, len(r.token_s)) if r.status == "ok" else 1
            counts = r.tokens_per_event or (even,) * len(r.token_s)
            written += sum(n for at, n in zip(r.token_s, counts) if o.start_s <= at <= o.end_s)
            read += r.input_tok if r.token_s and o.start_s <= r.token_s[0] <= o.end_s else 0
    return written, read


def in_flight(observations: Sequence[Observation]) -> float | None:
    """Requests between sending and last token, mean over the windows; None without a window."""
    seconds, inside = window_s(observations), 0.0
    for o in observations:
        for r in o.requests:
            if r.token_s:
                inside += max(0.0, min(r.token_s[-1], o.end_s) - max(r.send_s, o.start_s))
    return inside / seconds if seconds > 0.0 else None
