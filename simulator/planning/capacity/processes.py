"""Work on several processes, answers in order."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

IDLE_S = 600  # that a process waits for more work, with what it has set up


def in_order(work: Callable, arguments: Sequence[tuple], jobs: int) -> list[Any]:
    """`work(*each)` for all arguments, in their order, on so many processes."""
    if jobs == 1 or len(arguments) < 2:
        return [work(*each) for each in arguments]
    from joblib import Parallel, delayed  # slow to load

    workers = Parallel(n_jobs=jobs, backend="loky", idle_worker_timeout=IDLE_S)
    with warnings.catch_warnings():  # a process whose tables have grown large is replaced, and that is all
        warnings.filterwarnings("ignore", message="A worker stopped")
        return workers(delayed(work)(*each) for each in arguments)
