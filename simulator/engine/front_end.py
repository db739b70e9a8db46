"""What lies between a client and the engine: HTTP, and one thread that turns prompts into tokens.

Prompts that wait for the thread are tokenised in one call, at most `TOGETHER` of them, and all of them wait for its end
(vLLM: `AsyncMicrobatchTokenizer`). So a prompt that comes alone takes its own time, and one of a burst that of many.
"""

from __future__ import annotations

from collections import deque

import numpy as np

TOGETHER = 32


class FrontEnd:
    """The thread, for requests that nobody knows of before they come. Times in seconds.

    `come` says when to call `tokenise`, if that is not known yet; `tokenise` says who is ready when.
    """

    def __init__(self, prompt_tok_s: float) -> None:
        self._prompt_tok_s = prompt_tok_s
        self._waiting: deque[tuple[int, int]] = deque()
        self._free_s = 0.0

    def come(self, number: int, prompt_tok: int, now_s: float) -> float | None:
        """Request `number` comes; when the thread turns to it and all others that came, unless that was said before."""
        self._waiting.append((number, prompt_tok))
        return max(now_s, self._free_s) if len(self._waiting) == 1 else None

    def tokenise(self, now_s: float) -> tuple[list[int], float, float | None]:
        """(whom the thread takes now, when they are ready, when it turns to the next ones, if anybody waits)."""
        taken = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        self._free_s = now_s + self._prompt_tok_s * sum(tokens for _, tokens in taken)
        return [number for number, _ in taken], self._free_s, self._free_s if self._waiting else None


def tokenised_s(arrival_s: np.ndarray, prompt_tok: np.ndarray, prompt_tok_s: float) -> np.ndarray:
    """When requests that come at `arrival_s` (N,), ascending, are tokenised, shape (N,): the same for all at once.

    Most come alone; only those that meet others are looked at one by one.
    """
    ready = arrival_s + prompt_tok_s * prompt_tok
    if prompt_tok_s == 0.0:
        return ready
    came, before = arrival_s.tolist(), np.concatenate(([0], np.cumsum(prompt_tok))).tolist()
    after, n = 0, len(came)  # whom nobody has looked at yet
    for meeting in np.flatnonzero(arrival_s[1:] <= ready[:-1]).tolist():  # the thread is busy when the next one comes
        i = max(meeting, after)
        if i > meeting:
            continue
        free_s = came[i]
        while i < n and came[i] <= free_s:
            begins, j, last = free_s, i + 1, min(i + TOGETHER, n)
            while j < last and came[j] <= begins:
                j += 1
            free_s = begins + prompt_tok_s * (before[j] - before[i])
            ready[i:j] = free_s
            i = j
        after = i
    return ready
