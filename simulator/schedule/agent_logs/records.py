"""Requests out of a log: when they ran, how many tokens they read and wrote, and what tells their messages apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from simulator.schedule.agent_logs.messages import Message, digest_of, messages_of, replies_of
from simulator.schedule.agent_logs.text import LogLine, as_object, first_of, read_count, read_seconds, read_time
from simulator.schedule.files.complaints import shown
from simulator.workload.prompt_files import CHARACTERS_PER_TOK

REQUESTS = ("request", "request_body", "requestBody", "kwargs", "params", "inputs")
RESPONSES = ("response", "response_body", "responseBody", "result", "outputs")
STARTS = (
    "start_time", "startTime", "started_at", "start", "request_created_at", "request_time", "request_start",
    "timestamp", "created_at", "createdAt", "time", "ts", "created",
)  # fmt: skip
ENDS = ("end_time", "endTime", "ended_at", "end", "response_created_at", "finished_at", "completed_at")
DURATIONS = {  # field -> seconds of its unit
    **dict.fromkeys(("duration", "duration_s", "latency", "latency_s", "elapsed", "elapsed_s", "response_time"), 1.0),
    **dict.fromkeys(("duration_ms", "latency_ms", "elapsed_ms", "response_time_ms", "delay_ms"), 1e-3),
}
USAGES = ("usage", "usageDetails", "token_usage", "usage_metadata")
PROMPTS = ("prompt_tokens", "input_tokens", "promptTokens", "inputTokens")
OUTPUTS = ("completion_tokens", "output_tokens", "completionTokens", "outputTokens")
ANTHROPIC_CACHE = ("cache_creation_input_tokens", "cache_read_input_tokens")  # counted beside its input_tokens
FAILED = ("failed", "failure", "error", "cancelled", "canceled", "timeout")
TOOL_ENDS = ("tool_calls", "function_call", "tool_use")

FAILURE, EMBEDDING, SILENT = "failed", "made embeddings", "wrote nothing"  # why a line gives no call
MAX_CHOICES = 1024
SHOWN_FIELDS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """One request that was answered. `end_s` is None where the log does not say."""

    line: LogLine
    start_s: float
    end_s: float | None
    model: str
    prompt_tok: int
    output_tok: int
    estimated: bool  # tokens are counted from characters
    thought_tok: int  # of the output: thoughts, which do not come back in the next prompt
    cached_tok: int | None
    root: bytes  # what stands in front of the messages: the model and its tools
    messages: tuple[Message, ...]
    replies: tuple[Message, ...]  # one per choice, or none where the log does not have them
    choices: int
    calls_tool: bool  # the answer ended in a call of a tool


def read_request(line: LogLine) -> Request | str:
    """The request of a line, or why it gives no call. `UserError` when the line is no request."""
    return _Reader(line).read()


class _Reader:
    """One line, seen as a request, an answer and what is noted about both; they may be one and the same object."""

    def __init__(self, line: LogLine) -> None:
        self.line, self.entry = line, line.entry
        self.request = _inner(self.entry, REQUESTS) or self.entry
        self.response = _inner(self.entry, RESPONSES) or self.entry
        self.usage = as_object(first_of((self.response, self.entry), USAGES)[1])

    def read(self) -> Request | str:
        if self._failed():
            return FAILURE
        if self.response.get("object") == "chat.completion.chunk":
            raise self.line.error("object", "a piece of a streamed answer", "whole answers, one per line")
        if "embedding" in str(self.entry.get("url", ""))[:1000] or self.response.get("object") in ("list", "embedding"):
            return EMBEDDING
        start_s, end_s = self._times()
        messages, replies = self._messages(), replies_of(self.response)
        prompt_tok, output_tok, estimated = self._tokens(messages, replies)
        if not output_tok:
            return SILENT
        model = first_of((self.request, self.response, self.entry), ("model",))[1]
        return Request(
            self.line, start_s, end_s,
            model=model if isinstance(model, str) else "",
            prompt_tok=prompt_tok,
            output_tok=output_tok,
            estimated=estimated,
            thought_tok=min(self._detail(OUTPUTS, "reasoning_tokens") or 0, output_tok),
            cached_tok=self._cached(),
            root=digest_of([model, self.request.get("tools"), self.request.get("functions")]),
            messages=messages,
            replies=replies,
            choices=self._choices(len(replies)),
            calls_tool=self._calls_tool(),
        )  # fmt: skip

    def _failed(self) -> bool:
        for view in (self.entry, self.response):
            status = view.get("status_code", view.get("status"))
            if view.get("error") or view.get("exception") or view.get("success") is False:
                return True
            if isinstance(status, str) and status.lower() in FAILED:
                return True
            if isinstance(status, int) and not isinstance(status, bool) and status >= 400:
                return True
        return False

    # -- times -----------------------------------------------------------------------------------------------

    def _times(self) -> tuple[float, float | None]:
        """(start, end or None)."""
        views = (self.entry, self.response)
        starts, ends = first_of(views, STARTS), first_of(views, ENDS)
        field, duration = first_of(views, DURATIONS)
        length_s = read_seconds(self.line, field, duration) * DURATIONS[field] if field else None
        end_s = read_time(self.line, *ends) if ends[0] else None
        if starts[0]:
            start_s = read_time(self.line, *starts)
            end_s = start_s + length_s if end_s is None and length_s is not None else end_s
        elif end_s is not None and length_s is not None:
            start_s = max(0.0, end_s - length_s)
        else:
            found = f"the fields {', '.join(map(shown, islice(self.entry, SHOWN_FIELDS))) or '(none)'}"
            raise self.line.error("", found, "a request with its time, as 'start_time' and 'end_time', or 'created'")
        if end_s is not None and end_s < start_s:
            expected = f"a time not before that of '{starts[0] or field}'"
            raise self.line.error(ends[0] or field, shown(ends[1] if ends[0] else duration), expected)
        return start_s, end_s

    # -- tokens ----------------------------------------------------------------------------------------------

    def _tokens(self, messages: tuple[Message, ...], replies: tuple[Message, ...]) -> tuple[int, int, bool]:
        """(prompt tokens, output tokens, whether one of them is counted from characters)."""
        found, estimated = [], False
        for names, short, texts, what in (
            (PROMPTS, ("input", "prompt"), messages, "messages"),
            (OUTPUTS, ("output", "completion"), replies, "answer"),
        ):
            field, value = first_of((self.usage,), (*names, *short))
            if not field:
                field, value = first_of((self.response, self.entry), names)
            if field:
                found.append(read_count(self.line, field, value))
            elif texts:
                found.append(sum(-(-text.characters // CHARACTERS_PER_TOK) for text in texts))
                estimated = True
            else:
                expected = f"'{names[0]}' in it, or the texts of the {what}"
                raise self.line.error("usage", shown(self.usage) if self.usage else "nothing", expected)
        cache = [self.usage.get(name) for name in ANTHROPIC_CACHE]
        prompt_tok = found[0] + sum(
            read_count(self.line, n, v) for n, v in zip(ANTHROPIC_CACHE, cache) if v is not None
        )
        if not prompt_tok:
            raise self.line.error("usage", "a prompt of 0 tokens", "at least 1")
        return prompt_tok, found[1], estimated

    def _cached(self) -> int | None:
        """Prompt tokens that the log says came from a cache."""
        read = self.usage.get(ANTHROPIC_CACHE[1])
        return (
            self._detail(PROMPTS, "cached_tokens") if read is None else read_count(self.line, ANTHROPIC_CACHE[1], read)
        )

    def _detail(self, names: tuple[str, ...], field: str) -> int | None:
        details = as_object(first_of((self.usage,), [f"{name}_details" for name in names])[1])
        value = details.get(field)
        return None if value is None else read_count(self.line, field, value)

    # -- texts -----------------------------------------------------------------------------------------------

    def _messages(self) -> tuple[Message, ...]:
        texts = first_of((self.request, self.entry), ("messages", "input", "prompt"))[1]
        if isinstance(texts, dict):
            texts = texts.get("messages", [texts])
        return messages_of(texts, self.request.get("system") or self.request.get("instructions"))

    def _choices(self, replies: int) -> int:
        asked = self.request.get("n")
        whole = isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked <= MAX_CHOICES
        return replies or (asked if whole else 1)

    def _calls_tool(self) -> bool:
        choices = self.response.get("choices")
        ends = [self.response.get("stop_reason"), self.response.get("finish_reason")]
        if isinstance(choices, list):
            ends += [choice.get("finish_reason") for choice in choices if isinstance(choice, dict)]
        output = self.response.get("output")
        if isinstance(output, list):
            ends += [item.get("type") for item in output if isinstance(item, dict)]
        return any(isinstance(end, str) and end in TOOL_ENDS for end in ends)


def _inner(entry: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The object under the first of these names, or the one in its body; {} without."""
    for name in names:
        found = as_object(entry.get(name))
        if found:
            return as_object(found.get("body")) or found
    return {}
