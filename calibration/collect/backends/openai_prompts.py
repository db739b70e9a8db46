"""Prompts of a wanted number of tokens, without a tokenizer: token ids, or common words counted by the server itself.

Every prompt has a number that no other of this process has, and begins with words (ids) drawn by it, so that no prefix
cache has seen it. Where a process begins to count depends on the salt of this start of the measurement: a server that
stays up does not know the prompts of the next one either, and whoever knows the numbers can make the prompts again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Hashable, Sequence

import numpy as np

from calibration.collect.backends.openai_dialect import Prompt
from calibration.collect.point import seed_of
from simulator.workload.traffic import Parts, Traffic

_CLOSE_ENOUGH = 0.01  # relative, of the wanted length
_TRIES = 8
_EXACT_LENGTHS = 6  # of so many lengths each is measured; of more, a line through some
_HEAD_WORDS = 4
_NUMBERS = 2**28  # where counting may begin: with room above it, four words tell all numbers apart

# Common words of English: one token each, with the blank before it, in nearly every vocabulary.
_COMMON = (
    "about after again also always animal another answer any area around ask away back bad base because become "
    "before begin best better big black blue body book both bring build business call came car care carry case "
    "change child city class clear close cold color come common company could country course cover cut dark day "
    "deep did different do done door down draw drive dry each early earth east easy eat end enough even ever every "
    "example eye face fact fall family far farm fast father feel feet few field fight figure final find fire first "
    "fish five floor follow food foot for force form found four free friend from front full game gave general get "
    "girl give go gold good got government great green ground group grow had half hand hard has have he head hear "
    "heart heat heavy help her here high him his hold home horse hot hour house how hundred idea if"
)
WORDS = tuple(_COMMON.split())

Count = Callable[[Prompt], Awaitable[int | None]]  # tokens of a prompt, as the server counts them; None: not told


class PromptMaker:
    """Makes the prompts of a run. `ids_below` is the size of the vocabulary when prompts are token ids."""

    def __init__(
        self, count: Count, ids_below: int | None = None, share_prefixes: bool = False, salt: str = ""
    ) -> None:  # fmt: skip
        self._count, self._ids_below, self._share = count, ids_below, share_prefixes
        self._next = seed_of(salt) % _NUMBERS
        self._words: dict[int, int] = {}  # tokens -> words that the server counts as so many
        self._counted: dict[int, int] = {}  # words -> tokens, all that was asked
        self._line: tuple[float, float] | None = None  # tokens = first + second * words
        self.notes: list[str] = []

    async def prepare(self, traffic: Traffic) -> None:
        """Find out how many words give the lengths of `traffic`: asks the server, so before the run."""
        if self._ids_below is not None:
            return
        lengths = np.unique(traffic.prompt_tok).tolist()
        if len(lengths) > _EXACT_LENGTHS:
            lengths = np.unique(np.quantile(lengths, [0.0, 0.5, 1.0], method="nearest")).tolist()
        for tokens in lengths:
            if tokens not in self._words:
                self._words[tokens] = await self._fit(tokens)
        self._line = _line(self._counted)

    @property
    def next_number(self) -> int:
        """The number of the first prompt of the next run; the others of it follow."""
        return self._next + 1

    def prompts(self, traffic: Traffic) -> list[Prompt]:
        """The prompts of all requests of `traffic`, after `prepare`."""
        shared: Sequence[Parts] = traffic.shared_prefix if self._share and traffic.shared_prefix else ()
        return [
            self._one(tokens, shared[index] if shared else ())
            for index, tokens in enumerate(traffic.prompt_tok.tolist())
        ]

    def _one(self, tokens: int, shared: Parts) -> Prompt:
        self._next += 1
        parts = [(part, min(count, tokens)) for part, count in shared]
        own = max(0, tokens - sum(count for _, count in parts))
        if self._ids_below is not None:
            random = np.random.default_rng(self._next)
            ids = [token for part, count in parts for token in self._ids(_generator_of(part), count)]
            return ids + self._ids(random, own)
        words = self._words_for(tokens)
        counts = [round(words * count / tokens) for _, count in parts]
        text = [word for (part, _), count in zip(parts, counts) for word in _drawn(_generator_of(part), count)]
        return " ".join(text + self._text(max(1 if not text else 0, words - sum(counts))))

    def _ids(self, random: np.random.Generator, count: int) -> list[int]:
        """Ids from the middle of the vocabulary: special tokens stand at its ends."""
        low, high = self._ids_below // 8, max(self._ids_below // 8 + 1, self._ids_below * 3 // 4)
        return random.integers(low, high, size=count).tolist()

    def _text(self, words: int) -> list[str]:
        """`words` words; the first of them count the prompts, the rest is the same for all of one length."""
        head, number = [], self._next
        for _ in range(min(_HEAD_WORDS, words)):
            number, digit = divmod(number, len(WORDS))
            head.append(WORDS[digit])
        return head + _drawn(np.random.default_rng(words), words - len(head))

    def _words_for(self, tokens: int) -> int:
        if tokens in self._words:
            return self._words[tokens]
        at_none, per_word = self._line or (0.0, 1.0)
        return max(1, round((tokens - at_none) / per_word))

    async def _fit(self, tokens: int) -> int:
        """Words that the server counts as `tokens`, or as near as it goes."""
        seen: dict[int, int] = {}  # words -> tokens
        words = self._words_for(tokens)
        for _ in range(_TRIES):
            self._next += 1
            counted = await self._count(" ".join(self._text(words)))
            if counted is None:
                self._note("the server does not count prompts: a word is taken as one token")
                return tokens
            seen[words] = self._counted[words] = counted
            words = _next_guess(seen, tokens)
            if abs(seen.get(words, -tokens) - tokens) <= _CLOSE_ENOUGH * tokens or words in seen:
                break
        best = min(seen, key=lambda words: abs(seen[words] - tokens))
        if abs(seen[best] - tokens) > _CLOSE_ENOUGH * tokens:
            self._note(f"prompts of {tokens} tokens were wanted, the nearest that words give is {seen[best]}")
        return best

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _next_guess(seen: dict[int, int], tokens: int) -> int:
    """The number of words to try: the one that fits already, else along the line through the two nearest tries."""
    nearest = sorted(seen, key=lambda words: abs(seen[words] - tokens))
    first = nearest[0]
    if abs(seen[first] - tokens) <= _CLOSE_ENOUGH * tokens:
        return first
    per_word = seen[first] / first
    if len(nearest) > 1 and seen[nearest[1]] != seen[first]:
        per_word = (seen[nearest[1]] - seen[first]) / (nearest[1] - first)
    step = (tokens - seen[first]) / per_word if per_word > 0.0 else tokens - seen[first]
    return max(1, first + (round(step) or (1 if step > 0.0 else -1)))


def _line(counted: dict[int, int]) -> tuple[float, float]:
    """(tokens without a word, tokens per word) through what was counted; `counted`: words -> tokens."""
    if len(counted) < 2:
        return 0.0, next((tokens / words for words, tokens in counted.items()), 1.0)
    slope, start = np.polyfit(list(counted), list(counted.values()), 1)
    return (float(start), float(slope)) if slope > 0.0 else (0.0, max(counted.values()) / max(counted))


def _generator_of(part: Hashable) -> np.random.Generator:
    """The same for the same part of a trace, in every run."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(repr(part).encode()).digest()[:8], "big"))


def _drawn(random: np.random.Generator, count: int) -> list[str]:
    return [WORDS[index] for index in random.integers(0, len(WORDS), size=max(0, count)).tolist()]
