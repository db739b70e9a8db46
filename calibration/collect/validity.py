"""Whether a run can be used: what requests say about the client that sent them and about a server that falls behind.

Everything is computed from the observations of a point. A run of a point is looked at alone, as it began with an empty
server; what holds for one of them holds for the record. `docs/collecting.md` defines the flags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calibration.collect.point import DISTURBED, Observation, Point, RequestTimes

CLIENT_SHARE = 0.05  # of the mean time to first token: above it, the client is part of what was measured
LEAST_REQUESTS = 32  # of a run: with fewer, quarters and halves say nothing
OVERLOADED = 2.0  # times to first token in the last quarter over those in the first
BLOCKS = 4  # of each half: neighbours share a queue, means of blocks less so
SIGNIFICANT, NOTICEABLE = 0.01, 0.05
NO_SCATTER = 1e-3  # of the difference: then no test is needed


def disturbed(seen: Observation) -> bool:
    """Whether other work on the machine held up a run, as its back-end noted."""
    return any(note.startswith(DISTURBED) for note in seen.notes)


def runs_that_count(observations: Sequence[Observation]) -> tuple[Observation, ...]:
    """The runs of a point that its record is made of: those that nothing held up; all, where there is no such run."""
    return tuple(seen for seen in observations if not disturbed(seen)) or tuple(observations)


def client_late_s(observations: Sequence[Observation]) -> float | None:
    """How late the client was: median lag of its requests and its median queue, together; None: not known."""
    lags = [r.send_s - r.due_s for o in observations for r in _complete(o) if r.due_s is not None]
    if not lags:
        return None
    queues = [o.client_queue_s for o in observations if o.client_queue_s is not None]
    return float(np.median(lags)) + (float(np.median(queues)) if queues else 0.0)


def client_limits(observations: Sequence[Observation]) -> bool:
    """Whether the client was late by more than `CLIENT_SHARE` of the mean time to first token."""
    late_s = client_late_s(observations)
    ttft_s = [_ttft_s(r) for o in observations for r in _complete(o)]
    return late_s is not None and late_s > CLIENT_SHARE * float(np.mean(ttft_s))


def overloaded(seen: Observation) -> bool:
    """Whether the queue of an open loop grew until its end.

    In the order of sending, the median time to first token rises from quarter to quarter, to more than `OVERLOADED`
    times that of the first.
    """
    requests = _in_order(seen)
    if len(requests) < LEAST_REQUESTS:
        return False
    quarters = np.array_split([_ttft_s(r) for r in requests], 4)
    medians = [float(np.median(quarter)) for quarter in quarters]
    return medians == sorted(medians) and medians[-1] > OVERLOADED * medians[0]


def stationary(point: Point, seen: Observation) -> bool:
    """Whether both halves of a run agree, as far as it has requests enough to tell.

    Compared are times per token and, in an open loop, to first tokens, of requests in the order of sending. Those of a
    closed loop begin together: the first of each client is left out, and its times to first token are not compared.
    """
    requests = _in_order(seen)
    if point.load == "closed_loop":
        requests = requests[point.concurrency :]
    if point.load not in ("closed_loop", "open_loop") or len(requests) < LEAST_REQUESTS:
        return True
    series = [[(r.token_s[-1] - r.token_s[0]) / (r.output_tok - 1) for r in requests if r.output_tok > 1]]
    if point.load == "open_loop":
        series.append([_ttft_s(r) for r in requests])
    return all(_halves_agree(values) for values in series if len(values) >= LEAST_REQUESTS)


def _halves_agree(values: Sequence[float]) -> bool:
    """Welch's t-test on means of blocks: differences below `NOTICEABLE`, or that chance may bring, are none."""
    from scipy.stats import ttest_ind_from_stats

    blocks = np.array([block.mean() for block in np.array_split(np.asarray(values, dtype=float), 2 * BLOCKS)])
    first, second = blocks[:BLOCKS], blocks[BLOCKS:]
    difference = abs(float(second.mean() - first.mean()))
    if difference <= NOTICEABLE * float(blocks.mean()):
        return True
    if max(np.ptp(first), np.ptp(second)) < NO_SCATTER * difference:
        return False
    of_both = [number for half in (first, second) for number in (half.mean(), half.std(ddof=1), BLOCKS)]
    return bool(ttest_ind_from_stats(*of_both, equal_var=False).pvalue >= SIGNIFICANT)


def _complete(seen: Observation) -> list[RequestTimes]:
    return [r for r in seen.requests if r.status == "ok" and r.token_s]


def _in_order(seen: Observation) -> list[RequestTimes]:
    return sorted(_complete(seen), key=lambda r: r.send_s)


def _ttft_s(request: RequestTimes) -> float:
    return request.token_s[0] - request.send_s
