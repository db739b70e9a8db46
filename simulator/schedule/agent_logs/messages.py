"""What a request said and what it was answered, as a log has it: hashes and numbers of characters, never the words.

Known are the shapes of OpenAI's chat completions, completions and responses, and of Anthropic's messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import groupby
from typing import Any

import msgspec

MODEL = "assistant"  # the role of messages that the model wrote
_REPLIES = ("output", "content", "completion", "text", "output_text", "response")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: what tells it from others, how much text it has, and whether the model wrote it."""

    digest: bytes
    characters: int
    from_model: bool


def messages_of(value: object, system: object = None) -> tuple[Message, ...]:
    """The messages of a request: a list of them or one text; `system` stands in front."""
    found = [_message("system", system)] if system else []
    if isinstance(value, str) and value:
        found.append(_message("user", value))
    elif isinstance(value, list):
        # Items of OpenAI's responses: what the model wrote in one go is one message.
        for from_model, group in groupby(value, _is_output_item):
            items = list(group)
            found += [_joined(items)] if from_model else [_message_of(item) for item in items]
    return tuple(found)


def replies_of(response: Mapping[str, Any]) -> tuple[Message, ...]:
    """What the model answered, a message per choice; () where the log does not say."""
    choices = response.get("choices")
    if isinstance(choices, list):
        replies = [_reply(choice) for choice in choices]
        return tuple(replies) if None not in replies else ()
    for field in _REPLIES:
        value = response.get(field)
        if isinstance(value, list) and any(map(_is_output_item, value)):
            return (_joined(value),)
        if isinstance(value, dict) and "content" in value:
            return (_message(MODEL, value["content"], value.get("tool_calls")),)
        if isinstance(value, (str, list)) and value:
            return (_message(MODEL, value),)
    return ()


def digest_of(value: object) -> bytes:
    """What tells a JSON value from others."""
    try:
        return sha256(msgspec.json.encode(value, order="deterministic")).digest()
    except (TypeError, RecursionError, UnicodeEncodeError):  # nothing that a request can hold
        return sha256(b"unreadable").digest()


def _reply(choice: object) -> Message | None:
    if not isinstance(choice, dict):
        return None
    message = choice.get("message")
    if isinstance(message, dict):
        return _message(MODEL, message.get("content"), message.get("tool_calls"))
    text = choice.get("text", message)
    return _message(MODEL, text) if isinstance(text, str) else None


def _is_output_item(item: object) -> bool:
    """Whether it is an item of OpenAI's responses that the model wrote."""
    if not isinstance(item, dict):
        return False
    kind = item.get("type")
    return kind in ("function_call", "reasoning") or (kind == "message" and item.get("role") == MODEL)


def _joined(items: Iterable[object]) -> Message:
    texts, calls = [], []
    for item in items:
        if isinstance(item, dict) and item.get("type") == "function_call":
            calls.append({"function": item})
        elif isinstance(item, dict) and item.get("type") == "message":
            texts.append(_text_of(item.get("content")))
    return _message(MODEL, "".join(texts), calls)


def _message_of(entry: object) -> Message:
    if not isinstance(entry, dict):
        return _message("user", entry)
    content = entry.get("content", entry.get("output"))
    return _message(str(entry.get("role") or entry.get("type") or "user")[:100], content, entry.get("tool_calls"))


def _message(role: str, content: object, tool_calls: object = None) -> Message:
    """What counts is what a request and an answer say alike: role, text, and names and arguments of calls."""
    blocks = content if isinstance(content, list) else [content]
    used = [block for block in blocks if isinstance(block, dict) and block.get("type") == "tool_use"]
    calls = [_call(block.get("name"), block.get("input")) for block in used]
    for call in tool_calls if isinstance(tool_calls, list) else ():
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            calls.append(_call(function.get("name"), function.get("arguments")))
    others = [block for block in blocks if isinstance(block, dict) and block not in used and not _has_text(block)]
    text = _text_of(content)
    characters = len(text) + sum(len(word) for call in calls for word in call)
    return Message(digest_of([role, text, calls, others]), max(1, characters), role == MODEL)


def _call(name: object, arguments: object) -> tuple[str, str]:
    if not isinstance(arguments, str):
        try:
            arguments = msgspec.json.encode(arguments, order="deterministic").decode()
        except (TypeError, RecursionError, UnicodeEncodeError):
            arguments = "unreadable"
    return str(name)[:1000], arguments


def _has_text(block: Mapping[str, Any]) -> bool:
    return isinstance(block.get("text"), str)


def _text_of(content: object) -> str:
    """The text of a message's content: a text itself, or all blocks of text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(b if isinstance(b, str) else b["text"] for b in content if isinstance(b, str) or _is_text(b))
    return str(content) if isinstance(content, (int, float)) else ""


def _is_text(block: object) -> bool:
    return isinstance(block, dict) and _has_text(block)
