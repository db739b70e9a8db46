"""A streamed answer: server-sent events out of bytes, tokens and their arrivals out of events. No network in here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

DONE = "[DONE]"
_LONGEST_LINE_BYTE = 4 * 2**20  # far above any chunk; a line without an end must not fill the memory
_ENDED_BADLY = frozenset({"abort", "aborted", "error", "cancelled"})  # finish_reason of an engine that gave up


class StreamError(Exception):
    """The answer is no answer; the message says why, in words for a status."""


class EventLines:
    """The payloads of `data:` lines. One line is one event: so all the servers send them.

    `hide` goes over every line before anything else sees it.
    """

    def __init__(self, hide: Callable[[str], str] = str) -> None:
        self._hide = hide
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[str]:
        """The payloads that `data` completes. StreamError at what is not a server-sent event, after those before it."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        yield from filter(None, map(self._payload, lines))
        if len(self._rest) > _LONGEST_LINE_BYTE:
            raise StreamError(f"malformed stream: a line of more than {_LONGEST_LINE_BYTE:,} bytes")

    def end(self) -> Iterator[str]:
        """The payload of a last line without an end."""
        return self.feed(b"\n")

    def _payload(self, line: bytes) -> str | None:
        line = line.strip()
        if not line or line.startswith((b":", b"event:", b"id:", b"retry:")):
            return None
        text = self._hide(line.decode("utf-8", errors="replace"))
        if not text.startswith("data:"):
            raise StreamError(f"malformed stream: {shown(text)}")
        return text[5:].strip()


class Answer:
    """What came of one request: arrivals (seconds, the caller's clock), tokens, usage, how it ended."""

    def __init__(self, asked_tok: int) -> None:
        self.asked_tok = asked_tok
        self.arrival_s: list[float] = []
        self.usage: dict[str, Any] | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.has_token_ids = False
        self._tokens: list[int | None] = []  # of each arrival; None: not told
        self._totals: list[int | None] = []  # generated so far, as usage in the chunk says

    def take(self, payload: str, now_s: float) -> bool:
        """Add one event; whether it brought tokens. StreamError when it is not a chunk."""
        if payload == DONE:
            self.done = True
            return False
        try:
            chunk = json.loads(payload)
        except (ValueError, RecursionError):
            raise StreamError(f"malformed chunk: {shown(payload)}") from None
        if not isinstance(chunk, dict):
            raise StreamError(f"malformed chunk: {shown(payload)}")
        if chunk.get("error"):
            raise StreamError(f"the server reports: {shown(message_of(chunk))}")
        if chunk.get("usage") is not None:
            self.usage = _checked_usage(chunk["usage"])
        choices = chunk.get("choices")
        if not isinstance(choices, list) or (choices and not isinstance(choices[0], dict)):
            raise StreamError(f"malformed chunk: {shown(payload)}")
        return self._choice(choices[0], chunk.get("usage"), now_s) if choices else False

    def _choice(self, choice: dict[str, Any], usage: dict[str, Any] | None, now_s: float) -> bool:
        ending = choice.get("finish_reason")
        self.finish_reason = ending or self.finish_reason
        tokens = _told_tokens(choice)
        total = None if usage is None else usage["completion_tokens"]
        if not (_text(choice) or tokens or self._counts_silently(total, ending)):
            return False
        self.has_token_ids = self.has_token_ids or bool(choice.get("token_ids"))
        self.arrival_s.append(now_s)
        self._tokens.append(tokens)
        self._totals.append(total)
        if len(self.arrival_s) > 2 * self.asked_tok + 16:  # a chunk without a token is rare, but no fault
            raise StreamError(f"more chunks than the {self.asked_tok} tokens that were asked for: it does not end")
        return True

    def _counts_silently(self, total: int | None, ending: object) -> bool:
        """Whether a chunk without text brought a token all the same, as half of a character does.

        Only where every chunk tells the sum so far. A last chunk that jumps is usage, not a token.
        """
        if total is None or None in self._totals:
            return False
        more = total - (self._totals[-1] if self._totals else 0)
        return more == 1 or (more > 0 and not ending)

    def tokens_per_arrival(self) -> tuple[int, ...] | None:
        """Tokens of each arrival, where the server says so; None: not known.

        Also known where as many chunks as tokens came: each holds at least one.
        """
        n = len(self.arrival_s)
        counts: list[int] | None = None
        if n and None not in self._tokens:
            counts = list(self._tokens)
        elif n and None not in self._totals:
            counts = [after - before for before, after in zip([0, *self._totals], self._totals)]
        if counts and min(counts) >= 1 and self.usage and sum(counts) == self.usage["completion_tokens"]:
            return tuple(counts)
        return (1,) * n if self.usage and self.usage["completion_tokens"] == n else None

    @property
    def tokens_told(self) -> bool:
        """Whether every chunk said how many tokens there are so far."""
        return bool(self._totals) and None not in self._totals

    def output_tok(self) -> int:
        """Tokens of a good answer by its usage, else at least as many as chunks."""
        good = self.usage is not None and self.fault() is None
        return self.usage["completion_tokens"] if good else len(self.arrival_s)

    def ended(self) -> bool:
        """Whether the server said that the answer is whole."""
        return self.done or self.finish_reason is not None

    def fault(self) -> str | None:
        """Why this is not a good answer, when the stream is over; None: it is one."""
        chunks = len(self.arrival_s)
        if not self.ended():
            return f"the stream ended before the answer did, after {chunks} chunks"
        if str(self.finish_reason) in _ENDED_BADLY:
            return f"the server gave up: finish_reason {self.finish_reason}"
        if not chunks:
            return "no token came"
        if self.usage is None:
            return None
        told = self.usage["completion_tokens"]
        if told > self.asked_tok:
            return f"usage says {told} tokens, but {self.asked_tok} were asked for"
        if told + 1 < chunks:  # one more: a last rest of text without a token
            return f"usage says {told} tokens, but {chunks} chunks with text came"
        return None if self.usage["prompt_tokens"] >= 1 else "usage says that the prompt has no tokens"

    @property
    def cached_tok(self) -> int | None:
        """Prompt tokens that came from the prefix cache; None: not told."""
        details = (self.usage or {}).get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        return cached if isinstance(cached, int) else None


def shown(text: str, most: int = 160) -> str:
    """`text` on one line, cut short."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def message_of(payload: object) -> str:
    """The message in an error that a server sent: OpenAI's form, FastAPI's, or whatever it is."""
    if isinstance(payload, dict):
        for name in ("error", "message", "detail"):
            if payload.get(name):
                return message_of(payload[name])
    return payload if isinstance(payload, str) else json.dumps(payload)


def _text(choice: dict[str, Any]) -> str:
    """The text of a chunk: an answer's, or its thoughts."""
    delta = choice.get("delta")
    parts = [choice.get("text")]
    if isinstance(delta, dict):
        parts += [delta.get(name) for name in ("content", "reasoning_content", "reasoning")]
    return "".join(part for part in parts if isinstance(part, str))


def _told_tokens(choice: dict[str, Any]) -> int | None:
    """How many tokens a chunk says it brings, by its token ids or log probabilities."""
    if isinstance(choice.get("token_ids"), list):
        return len(choice["token_ids"])
    logprobs = choice.get("logprobs")
    if isinstance(logprobs, dict):
        for name in ("tokens", "content"):
            if isinstance(logprobs.get(name), list):
                return len(logprobs[name])
    return None


def _checked_usage(usage: object) -> dict[str, Any]:
    """`usage` when both counts are whole numbers >= 0."""
    if isinstance(usage, dict):
        counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
        if all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
            return usage
    raise StreamError(f"malformed usage: {shown(json.dumps(usage))}")
