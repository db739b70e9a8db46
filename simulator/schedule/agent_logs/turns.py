"""The requests of a log set in time: which of them each one waited for, and how long after these it started."""

from __future__ import annotations

import math
import os
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from itertools import accumulate

from simulator.errors import UserError
from simulator.schedule.agent_logs.prompts import Prompt
from simulator.schedule.agent_logs.records import Request, read_request
from simulator.schedule.agent_logs.text import read_log
from simulator.workload.seconds import MAX_S


@dataclass
class Turn:
    """A request with its place in time."""

    request: Request
    end_s: float
    ids: tuple[str, ...]
    prompt: Prompt | None = None
    before: tuple[int, int] = (0, 0)  # those that it waits for: a slice of the turns by their ends
    gap_s: float = 0.0


@dataclass
class Log:
    """All requests of a log that were answered, and how many were not."""

    turns: list[Turn] = field(default_factory=list)  # by start
    by_end: list[Turn] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    endless: int = 0  # without a time of their end
    shortened: int = 0  # gaps that were cut
    removed_s: float = 0.0


def read_turns(path: str | os.PathLike) -> Log:
    """All requests of a log in the order of their starts. `UserError` when there is none, or when a line is bad."""
    log, requests = Log(), []
    for line in read_log(path):
        request = read_request(line)
        if isinstance(request, str):
            log.left_out[request] += 1
        else:
            requests.append(request)
    if not requests:
        why = ", ".join(f"{count} {reason}" for reason, count in log.left_out.items())
        raise UserError(f"log '{path}': found no request that was answered ({why}), expected at least one")
    requests.sort(key=lambda request: (request.start_s, request.line.number))
    starts = [request.start_s for request in requests]
    for i, request in enumerate(requests, 1):
        ids = (f"r{i}",) if request.choices == 1 else tuple(f"r{i}.{k}" for k in range(1, request.choices + 1))
        end_s = request.end_s
        if end_s is None:  # until the next one starts
            log.endless += 1
            following = bisect_right(starts, request.start_s)
            end_s = starts[following] if following < len(starts) else request.start_s
        # What takes no time by a coarse clock still ends after it has begun: at the same moment nobody waits for it.
        log.turns.append(Turn(request, max(end_s, math.nextafter(request.start_s, math.inf)), ids))
    log.by_end = sorted(log.turns, key=lambda turn: (turn.end_s, turn.request.line.number))
    return log


def set_in_time(log: Log, max_gap_s: float | None) -> None:
    """Whom each turn waits for, and how long after the last of them it starts.

    It waits for every turn that had ended, except those before another one that it waits for: those that ended after
    the last start of a turn that had ended.
    """
    ends = [turn.end_s for turn in log.by_end]
    last_start = list(accumulate((turn.request.start_s for turn in log.by_end), max))
    origin_s = log.turns[0].request.start_s
    for turn in log.turns:
        start_s = turn.request.start_s
        ended = bisect_right(ends, start_s)
        turn.before = (bisect_right(ends, last_start[ended - 1]), ended) if ended else (0, 0)
        gap_s = start_s - (ends[ended - 1] if ended else origin_s)
        limit_s = MAX_S if max_gap_s is None else max_gap_s
        if gap_s > limit_s:
            log.shortened += 1
            log.removed_s += gap_s - limit_s
        turn.gap_s = round(min(gap_s, limit_s), 6)


def most_at_once(log: Log) -> int:
    """Requests that ran at the fullest moment."""
    ends = [turn.end_s for turn in log.by_end]
    return max(number - bisect_right(ends, turn.request.start_s) for number, turn in enumerate(log.turns, 1))
