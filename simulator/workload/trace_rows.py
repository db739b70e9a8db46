"""What a trace file says, before anyone chooses a part of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.workload.traffic import Parts


@dataclass(frozen=True)
class Rows:
    """R requests in file order.

    `own_prefixes`: the shared prefixes are contents of this stretch of time, so a second copy of the trace is taken to
    have other contents; False: they are named system prompts, which stay what they are.
    """

    prompt_tok: np.ndarray  # (R,) int64, >= 1
    output_tok: np.ndarray | None  # (R,) int64, >= 1; None: the file does not say
    arrival_s: np.ndarray | None = None  # (R,) ascending, the first is 0; None: the file has no times
    shared_prefix: tuple[Parts, ...] | None = None  # (R,)
    priority: np.ndarray | None = None  # (R,) int64
    own_prefixes: bool = False
    assumptions: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_tok)

    def take(self, index: np.ndarray) -> Rows:
        """The requests at `index` (any order, repeats allowed), with their times."""
        prefix = self.shared_prefix
        return Rows(
            prompt_tok=self.prompt_tok[index],
            output_tok=None if self.output_tok is None else self.output_tok[index],
            arrival_s=None if self.arrival_s is None else self.arrival_s[index],
            shared_prefix=None if prefix is None else tuple(prefix[i] for i in index.tolist()),
            priority=None if self.priority is None else self.priority[index],
            own_prefixes=self.own_prefixes,
            assumptions=self.assumptions,
        )
