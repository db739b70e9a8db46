"""What a server understands beyond OpenAI's own fields, found out by asking it: small requests before any run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from calibration.collect.backends.openai_http import Http, Outcome
from calibration.collect.backends.openai_settings import ClientSettings
from calibration.collect.backends.openai_stream import message_of, shown
from calibration.collect.point import BackendError

Prompt = str | list[int]

_PROBE_TEXT = "the time of the day"
_PROBE_TOK = 3


@dataclass(frozen=True)
class Dialect:
    """How to ask this server. `long_answers`: the field that keeps the model from ending early, None: there is none."""

    model: str
    temperature: float = 0.0
    chat: bool = False
    ids: bool = False  # prompts may be token ids
    usage: bool = False  # stream_options.include_usage
    running_usage: bool = False  # vLLM, SGLang: usage in every chunk
    token_ids: bool = False  # vLLM: the ids of each chunk
    long_answers: str | None = None  # ignore_eos | min_tokens
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, prompt: Prompt, output_tok: int, stream: bool = True) -> bytes:
        """The JSON of a request for `output_tok` tokens."""
        said: dict[str, Any] = {"model": self.model, "max_tokens": output_tok, "temperature": self.temperature}
        if self.chat:
            said["messages"] = [{"role": "user", "content": prompt}]
        else:
            said["prompt"] = prompt
        if self.long_answers == "ignore_eos":
            said["ignore_eos"] = True
        elif self.long_answers == "min_tokens":
            said["min_tokens"] = output_tok
        if self.token_ids:
            said["return_token_ids"] = True
        if stream:
            said["stream"] = True
            options = {"include_usage": self.usage, "continuous_usage_stats": self.running_usage}
            if any(options.values()):
                said["stream_options"] = {name: True for name, wanted in options.items() if wanted}
        return json.dumps(said).encode()


async def negotiate(http: Http, model: str, settings: ClientSettings, vocab_size: int | None) -> Dialect:
    """The fullest dialect that the server takes. BackendError when it serves no stream at all."""
    dialect = await _endpoint(http, Dialect(model, settings.temperature), settings.endpoint)
    dialect = await _add(http, dialect, "stream_options.include_usage", usage=True)
    if dialect.usage:
        dialect = await _add(http, dialect, None, lambda got: got.answer.tokens_told, running_usage=True)
    if not dialect.running_usage:
        dialect = await _add(http, dialect, None, lambda got: got.answer.has_token_ids, token_ids=True)
    dialect = await _add(http, dialect, "ignore_eos", long_answers="ignore_eos")
    if dialect.long_answers is None:
        dialect = await _add(http, dialect, "min_tokens", long_answers="min_tokens")
    if dialect.long_answers is None:
        dialect = _noting(dialect, "answers may end early: the model decides")
    return await _prompts(http, dialect, settings, vocab_size)


async def _endpoint(http: Http, plain: Dialect, wanted: str) -> Dialect:
    """Completions, where there are any: a chat template adds tokens to every prompt."""
    reasons = []
    for chat in (False, True):
        if wanted == ("completions" if chat else "chat"):
            continue
        dialect = replace(plain, chat=chat)
        got = await _ask(http, dialect)
        if _taken(got):
            return _noting(dialect, "prompts are chats: the server's template adds tokens") if chat else dialect
        if not got.refused:
            raise BackendError(f"the server does not serve '{plain.model}' at {dialect.path}: {got.reason}")
        reasons.append(f"{dialect.path}: {got.reason}")
    raise BackendError(f"the server refuses streamed completions; {'; '.join(reasons)}")


async def _add(
    http: Http, dialect: Dialect, name: str | None, works: Callable[[Outcome], bool] | None = None, **more: Any
) -> Dialect:
    """`dialect` with `more`, when the server takes it and it works. A refusal of a field with a `name` is told."""
    richer = replace(dialect, **more)
    got = await _ask(http, richer)
    if _taken(got):
        return richer if works is None or works(got) else dialect
    return dialect if name is None else _noting(dialect, f"the server refuses {name} ({_why(got)})")


async def _prompts(http: Http, dialect: Dialect, settings: ClientSettings, vocab_size: int | None) -> Dialect:
    """Token ids where the server takes them as they are: then the length of a prompt is exact."""
    if settings.prompt == "text" or (settings.prompt == "auto" and (vocab_size is None or dialect.chat)):
        return dialect
    if vocab_size is None or dialect.chat:
        why = "chats are text" if dialect.chat else "the size of the vocabulary is not known: set vocab_size"
        raise BackendError(f"prompts of token ids (prompt=ids) are not possible: {why}")
    sent = [vocab_size // 2] * 8
    status, payload = await http.post(dialect.path, replace(dialect, ids=True).body(sent, 1, stream=False))
    if status == 200 and prompt_tokens(payload) == len(sent):
        return replace(dialect, ids=True)
    found = f"{prompt_tokens(payload)} prompt tokens for {len(sent)} ids" if status == 200 else f"HTTP {status}"
    if settings.prompt == "ids":
        raise BackendError(f"the server does not take token ids as a prompt: {found}, {shown(message_of(payload))}")
    return _noting(dialect, f"the server does not take token ids as a prompt ({found}): prompts are words")


def prompt_tokens(payload: object) -> int | None:
    """usage.prompt_tokens of a whole answer; None: not told."""
    usage = payload.get("usage") if isinstance(payload, dict) else None
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and count > 0 else None


async def _ask(http: Http, dialect: Dialect) -> Outcome:
    got = Outcome(_PROBE_TOK)
    await http.stream(dialect.path, dialect.body(_PROBE_TEXT, _PROBE_TOK), got)
    if got.http_status in (401, 403):
        raise BackendError(f"the server wants another API key: {got.reason}")
    return got


def _taken(got: Outcome) -> bool:
    """Whether the request was understood; a model that ends at once has understood it."""
    return got.ok or (got.http_status == 200 and got.answer.ended() and not got.answer.arrival_s)


def _why(got: Outcome) -> str:
    return got.reason if got.http_status in (None, 200) else f"HTTP {got.http_status}"


def _noting(dialect: Dialect, note: str) -> Dialect:
    return replace(dialect, notes=(*dialect.notes, note))
