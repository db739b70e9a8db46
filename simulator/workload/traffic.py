"""Traffic: the requests that users send to a server, and when."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np

Parts = tuple[tuple[Hashable, int], ...]  # what a text consists of: (part id, tokens)


def counted(n: int, noun: str) -> str:
    """'1 request', '1,000 requests'."""
    return f"{n:,} {noun}{'s' if n != 1 else ''}"


@dataclass(frozen=True)
class Traffic:
    """N requests in order of submission.

    Open loop: request j arrives at arrival_s[j], whatever the server does. Closed loop (`clients` > 0): that many
    clients each send their next request when their last one has ended; `arrival_s` is None.

    `shared_prefix[j]` is the beginning of prompt j as far as other prompts may begin alike: parts (id, tokens) that
    sum to at most prompt_tok[j]; equal ids in the same place are the same tokens.
    """

    prompt_tok: np.ndarray  # (N,) int64, >= 1
    output_tok: np.ndarray  # (N,) int64, >= 1
    arrival_s: np.ndarray | None = None  # (N,) float, ascending, >= 0; None: closed loop
    clients: int = 0
    shared_prefix: tuple[Parts, ...] | None = None  # (N,); None: no prompt has anything in common with another
    priority: np.ndarray | None = None  # (N,) int64, lower is served first (vLLM's order); None: all alike
    title: str = ""  # one phrase: what this is
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        n = len(self.prompt_tok)
        if n == 0:
            raise ValueError("traffic needs at least one request")
        if (self.arrival_s is None) != (self.clients > 0):
            raise ValueError("traffic has either arrival times or clients")
        for name in ("output_tok", "arrival_s", "shared_prefix", "priority"):
            values = getattr(self, name)
            if values is not None and len(values) != n:
                raise ValueError(f"{name} has {len(values)} entries, expected {n}")
        if min(self.prompt_tok.min(), self.output_tok.min()) < 1:
            raise ValueError("prompt_tok and output_tok must be >= 1")
        if self.arrival_s is not None:
            times = self.arrival_s
            if not np.isfinite(times).all() or times[0] < 0.0 or (np.diff(times) < 0.0).any():
                raise ValueError("arrival_s must be finite, >= 0 and ascending")

    def __len__(self) -> int:
        return len(self.prompt_tok)
