"""A progress bar for work that lasts: on stderr, on a terminal only, and not within the first second."""

from __future__ import annotations

import sys
import time
from typing import Any

PATIENCE_S = 1.0


class ProgressBar:
    """Call it with (done, total) as the work goes on; total None means unknown.

    A context manager, so that the bar goes away when the work ends or fails.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._start_s = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        return self

    def __call__(self, done: int, total: int | None) -> None:
        """Report that `done` of `total` pieces of work are done."""
        if self._bar is None:
            finished = total is not None and done >= total
            if finished or not sys.stderr.isatty() or time.monotonic() - self._start_s < PATIENCE_S:
                return
            self._open(total)
        self._bar.update(self._task, completed=done)

    def _open(self, total: int | None) -> None:
        from rich.console import Console  # slow to load
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        parts = (TextColumn(self.label), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*parts, console=console, transient=True)
        self._task = self._bar.add_task(self.label, total=total)
        self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
