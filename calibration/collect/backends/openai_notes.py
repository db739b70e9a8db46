"""What a reader must know about a run: how far the client can be trusted, and where the server did other than asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np

from calibration.collect.backends.openai_http import Outcome
from calibration.collect.backends.openai_run import Run
from calibration.collect.point import RequestTimes
from calibration.collect.validity import CLIENT_SHARE
from simulator.workload.traffic import Traffic, counted

_BUSY_CPU = 0.8  # of the one core that the client has
_LENGTH_OFF = 0.01


def request_times(outcome: Outcome, planned_tok: int) -> RequestTimes:
    """A request as records know it. Tokens per event are left out where each event is one token, or none is known."""
    answer = outcome.answer
    per_event = answer.tokens_per_arrival()
    return RequestTimes(
        send_s=outcome.send_s,
        token_s=tuple(answer.arrival_s),
        input_tok=answer.usage["prompt_tokens"] if answer.usage and outcome.ok else planned_tok,
        output_tok=answer.output_tok(),
        status=outcome.status,
        cached_tok=answer.cached_tok,
        tokens_per_event=None if per_event is None or max(per_event, default=1) == 1 else per_event,
        due_s=outcome.planned_s or None,
        asked_tok=answer.asked_tok,
    )


def queue_s(run: Run) -> float:
    """How late the client's event loop woke up (median): so long what is ready waits for its turn."""
    return float(np.median(run.beats_late_s or [0.0]))


def notes_of(run: Run, traffic: Traffic) -> list[str]:
    """One sentence each."""
    good = [outcome for outcome in run.outcomes if outcome.ok]
    return [*traffic.assumptions, *_failures(run), *_client(run, good), *_tokens(good), *_lengths(run, traffic)]


def _failures(run: Run) -> Iterable[str]:
    bad = Counter(outcome.status for outcome in run.outcomes if not outcome.ok)
    if bad:
        reasons = "; ".join(f"{status.removeprefix('failed: ')} ({count})" for status, count in bad.most_common(5))
        yield f"{sum(bad.values())} of {counted(len(run.outcomes), 'request')} did not end well: {reasons}"
    if run.gave_up:
        yield "the client gave up: too many requests in a row failed"
    if run.out_of_time:
        yield "the time of the run was over before all answers had ended"


def _client(run: Run, good: list[Outcome]) -> Iterable[str]:
    """Lag: from when a request was due to when it went out. Queue: how late the client's event loop woke up."""
    if not good:
        return
    ttft_s = float(np.mean([outcome.answer.arrival_s[0] - outcome.send_s for outcome in good]))
    lag_s = [outcome.send_s - outcome.planned_s for outcome in good]
    late_s = run.beats_late_s or [0.0]
    lag, queue = float(np.median(lag_s)), queue_s(run)
    yield (
        f"client: lag {_ms(lag)} (median), {_ms(max(lag_s))} (largest); queue {_ms(queue)} (median), "
        f"{_ms(float(np.quantile(late_s, 0.99)))} (p99); {run.cpu_share:.0%} of a core"
    )
    if lag + queue > CLIENT_SHARE * ttft_s:
        yield (
            f"suspect: lag and queue of the client are {(lag + queue) / max(ttft_s, 1e-9):.0%} of the mean time to "
            f"first token ({_ms(ttft_s)}), expected at most {CLIENT_SHARE:.0%}"
        )
    if run.cpu_share > _BUSY_CPU:
        yield f"suspect: the client was busy {run.cpu_share:.0%} of the time, and may have slowed what it measured"


def _tokens(good: list[Outcome]) -> Iterable[str]:
    unknown = [outcome for outcome in good if outcome.answer.tokens_per_arrival() is None]
    if unknown:
        yield (
            f"{len(unknown)} of {counted(len(good), 'answer')}: tokens per chunk are not known, "
            "gaps between chunks are not gaps between tokens"
        )
    if any(outcome.answer.usage is None for outcome in good):
        yield "the server gives no usage: input tokens are as asked, output tokens are counted chunks"
    chunks = sum(len(outcome.answer.arrival_s) for outcome in good)
    together = sum(outcome.shared_reads for outcome in good)
    if together > 0.05 * chunks:
        yield f"{together / chunks:.0%} of the chunks came in one read with others: they share one arrival time"
    if any(not outcome.answer.done for outcome in good):
        yield "the server ends streams without [DONE]"


def _lengths(run: Run, traffic: Traffic) -> Iterable[str]:
    pairs = [
        (outcome.answer, wanted_tok)
        for outcome, wanted_tok in zip(run.outcomes, traffic.prompt_tok.tolist())
        if outcome.ok and outcome.answer.usage is not None
    ]
    short = [answer for answer, _ in pairs if answer.output_tok() < answer.asked_tok]
    if short:
        yield f"{len(short)} of {counted(len(pairs), 'answer')} ended before all tokens that were asked for"
    off = [answer.usage["prompt_tokens"] / wanted_tok - 1.0 for answer, wanted_tok in pairs]
    if off and max(map(abs, off)) > _LENGTH_OFF:
        yield f"prompts are {min(off):+.1%} to {max(off):+.1%} longer than asked; the counts are the server's"
    cached = [answer.cached_tok for answer, _ in pairs if answer.cached_tok]
    if cached:
        yield f"{counted(len(cached), 'prompt')} came partly from the prefix cache, {sum(cached):,} tokens in all"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
