"""How much other work held up a run: the kernel's count of the time that threads of this process waited for a core.

The operators of PyTorch share their work among threads and wait for the last of them. One that has to wait for a core,
as something else runs on it, holds up all others: a step of two threads took five times as long where each of them
waited for half of the time. The load average is too slow to tell, and a clock cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

QUIET = 0.05  # waiting, as a share of a run's time, that is of no account
TRIES = 3
_THREADS = Path("/proc/self/task")

Result = TypeVar("Result")


def waited_s() -> dict[str, float]:
    """Seconds that each thread of this process, by its number, was ready to run and did not; empty: not known.

    Linux only: the second figure of `schedstat` (Documentation/scheduler/sched-stats.rst), nanoseconds in a run queue.
    """
    found = {}
    for path in _THREADS.glob("*/schedstat"):
        try:
            found[path.parent.name] = int(path.read_text().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):  # a thread that has just ended, a kernel that does not count
            continue
    return found


def quietest(run: Callable[[], Result], tries: int = TRIES) -> tuple[Result, float | None]:
    """(what `run` gave, share of its time that a thread waited for a core, of the one that waited longest).

    A run that waited for more than `QUIET` is done again, `tries` times in all; the one that waited least counts. The
    share is None where the kernel does not tell it: then nothing is repeated.
    """
    best: tuple[Result, float | None] | None = None
    for _ in range(tries):
        before, began = waited_s(), time.perf_counter()
        result = run()
        lasted_s, after = time.perf_counter() - began, waited_s()
        share = max((s - before.get(thread, 0.0) for thread, s in after.items()), default=None)
        share = share / lasted_s if share is not None and lasted_s > 0.0 else None
        if best is None or (share is not None and best[1] is not None and share < best[1]):
            best = result, share
        if share is None or share <= QUIET:
            break
    assert best is not None
    return best
