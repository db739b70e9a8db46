"""Expected seconds of strategies of diffusion models, without drawing passes.

The strategies draw how many passes a block takes, binomially, and seconds are linear in these numbers. So the mean over
all draws follows from flights in which nothing is random: those with the fewest and with the most passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

EXACT = "expectation over the drawn passes, from flights with the fewest and the most; no draw, so no seed"


@dataclass(frozen=True)
class Unmasking:
    """What `certain_passes` draws from: tokens of an answer, its rate, and the fewest passes of a block."""

    answer_tok: int
    block_tok: int
    tokens_per_pass: float
    least: int = 1

    def share(self, text_tok: int) -> float:
        """Of a block with so many tokens of text: the chance that one of the further passes is taken."""
        further = text_tok - self.least
        return min(1.0, max(0.0, (text_tok / self.tokens_per_pass - self.least) / further)) if further > 0 else 0.0

    def mean(self, seconds: Callable[[int, float], float]) -> float:
        """Expected seconds; `seconds(answer_tok, tokens_per_pass)` are those of a flight.

        At `block_tok` tokens per pass every block takes the fewest passes, at 1 every token of text has its own.
        """
        rest = self.answer_tok % self.block_tok
        fewest = seconds(self.answer_tok, self.block_tok)
        filled = seconds(self.answer_tok - rest, 1.0) if self.answer_tok > rest else fewest
        found = fewest + self.share(self.block_tok) * (filled - fewest)
        if rest:
            found += self.share(rest) * (seconds(self.answer_tok, 1.0) - filled)
        return found
