"""Which prompts of a log begin with the same text, and which repeat what an earlier request was answered.

Where the log has messages, prompts share what their messages have in common from the first on. Where it has only
numbers, a prompt that is as long as an earlier one and its answer together, or longer, is taken to go on from them.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, field

from simulator.schedule.agent_logs.messages import Message
from simulator.schedule.agent_logs.records import Request
from simulator.schedule.files.sheet import Part


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a request was answered. `digest` is None where the log does not have the words."""

    id: str
    end_s: float
    tokens: int
    digest: bytes | None


@dataclass(slots=True)
class _Place:
    """A place in the tree of all prompts: behind a message that follows those above it."""

    part: str | Part = ""
    tokens: int = 0
    children: dict[bytes, _Place] = field(default_factory=dict)
    prompt_of: str = ""  # the first request whose prompt is exactly what leads here
    answers: list[_Answer] = field(default_factory=list)  # to the requests whose prompts lead here


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a request reads, and how much of it an earlier one had read or been answered."""

    parts: tuple[str | Part, ...]
    shared_tok: int
    kind: str  # how that was found: "messages", "growth", "new" or "cut"


class PromptBook:
    """Gets the requests in the order in which they started; `texts` has all that they read and nobody wrote."""

    def __init__(self) -> None:
        self.texts: dict[str, int] = {}
        self._roots: dict[bytes, _Place] = {}
        self._running: list[tuple[float, int, Request, str]] = []  # by their ends: those without messages
        self._open: dict[bytes, list[tuple[int, int, Request, str]]] = {}  # ended and not gone on from, by their size
        self._count = 0

    def add(self, request: Request, end_s: float, ids: Sequence[str]) -> Prompt:
        """The prompt of a request that ends at `end_s`; `ids` are the nodes that it becomes, one per choice."""
        self._count += 1
        return self._by_messages(request, end_s, ids) if request.messages else self._by_growth(request, end_s, ids[0])

    def _text(self, tokens: int) -> str:
        name = f"t{len(self.texts) + 1}"
        self.texts[name] = tokens
        return name

    # -- messages --------------------------------------------------------------------------------------------

    def _by_messages(self, request: Request, end_s: float, ids: Sequence[str]) -> Prompt:
        path = [self._roots.setdefault(request.root, _Place())]
        for message in request.messages:
            following = path[-1].children.get(message.digest) or _answered(path[-1], message, request.start_s)
            if following is None:
                break
            path.append(following)
        known, new = path[1:], request.messages[len(path) - 1 :]
        known_tok = sum(place.tokens for place in known)
        shared_tok = min(known_tok, max(0, request.prompt_tok - len(new)))
        parts = _cut(known, shared_tok) if shared_tok < known_tok else _shortened(known)
        place, whole = path[-1], shared_tok == known_tok
        for message, tokens in zip(new, apportion(request.prompt_tok - shared_tok, [m.characters for m in new])):
            if not tokens:  # more messages than tokens
                whole = False
                break
            following = _Place(self._text(tokens), tokens)
            place.children[message.digest] = following
            place = following
            parts.append(place.part)
        if not new and shared_tok < request.prompt_tok:
            parts.append(self._text(request.prompt_tok - shared_tok))
            whole = False
        if whole:
            place.prompt_of = place.prompt_of or ids[0]
        if not request.thought_tok:
            place.answers += _answers(request, end_s, ids)
        kind = "cut" if shared_tok < known_tok else "messages" if shared_tok else "new"
        return Prompt(tuple(parts), shared_tok, kind)

    # -- growth ----------------------------------------------------------------------------------------------

    def _by_growth(self, request: Request, end_s: float, id_: str) -> Prompt:
        while self._running and self._running[0][0] <= request.start_s:
            _, number, ended, ended_id = heapq.heappop(self._running)
            size = ended.prompt_tok + choice_tok(ended)[0] - ended.thought_tok
            insort(self._open.setdefault(ended.root, []), (size, number, ended, ended_id), key=lambda entry: entry[:2])
        heapq.heappush(self._running, (end_s, self._count, request, id_))
        found = self._open.get(request.root, [])
        at = bisect_right(found, request.prompt_tok, key=lambda entry: entry[0])
        if not at:
            return Prompt((self._text(request.prompt_tok),), 0, "new")
        _, _, earlier, earlier_id = found.pop(at - 1)
        parts: list[str | Part] = [Part(prompt=earlier_id)]
        shared_tok = earlier.prompt_tok
        if not earlier.thought_tok:
            parts.append(Part(output=earlier_id))
            shared_tok += choice_tok(earlier)[0]
        if request.prompt_tok > shared_tok:
            parts.append(self._text(request.prompt_tok - shared_tok))
        return Prompt(tuple(parts), shared_tok, "growth")


def _answered(place: _Place, message: Message, start_s: float) -> _Place | None:
    """The place behind a message that repeats an answer given before `start_s`."""
    if not message.from_model:
        return None
    ended = [answer for answer in place.answers if answer.end_s <= start_s]
    same = [answer for answer in ended if answer.digest == message.digest] or [a for a in ended if a.digest is None]
    if not same:
        return None
    answer = same[-1]
    place.answers.remove(answer)
    found = place.children[message.digest] = _Place(Part(output=answer.id), answer.tokens)
    return found


def _answers(request: Request, end_s: float, ids: Sequence[str]) -> list[_Answer]:
    digests = [reply.digest for reply in request.replies] or [None] * len(ids)
    return [_Answer(*answer) for answer in zip(ids, [end_s] * len(ids), choice_tok(request), digests)]


def choice_tok(request: Request) -> list[int]:
    """Tokens of each choice of a request's answer: divided by characters, or evenly where there are no texts."""
    weights = [reply.characters for reply in request.replies] or [1] * request.choices
    return [max(1, tokens) for tokens in apportion(request.output_tok, weights)]


def _shortened(known: Sequence[_Place]) -> list[str | Part]:
    """Parts of all places, of which the first are written as the prompt of an earlier request where that is so."""
    for i in range(len(known) - 1, 0, -1):
        if known[i].prompt_of:
            return [Part(prompt=known[i].prompt_of), *(place.part for place in known[i + 1 :])]
    return [place.part for place in known]


def _cut(known: Sequence[_Place], tokens: int) -> list[str | Part]:
    """The first so many tokens of the places."""
    parts: list[str | Part] = []
    for place in known:
        if tokens <= 0:
            break
        if tokens >= place.tokens:
            parts.append(place.part)
        elif isinstance(place.part, str):
            parts.append(Part(text=place.part, first=tokens))
        else:
            parts.append(Part(output=place.part.output, first=tokens))
        tokens -= place.tokens
    return parts


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """`total` tokens in proportion to the weights, at least one each; 0 for the last ones if there are too few."""
    if total <= len(weights):
        return [1] * total + [0] * (len(weights) - total)
    exact = [(total - len(weights)) * weight / sum(weights) for weight in weights]
    found = [1 + int(part) for part in exact]
    by_rest = sorted(range(len(weights)), key=lambda i: int(exact[i]) - exact[i])
    for i in by_rest[: total - sum(found)]:
        found[i] += 1
    return found
