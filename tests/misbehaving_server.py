"""A small server on loopback that speaks OpenAI's streaming API, well or badly, as a test tells it.

Its tokens are words: a prompt has as many as it has words, and one more for the beginning of the text.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EXTENSIONS = frozenset({"ignore_eos", "min_tokens", "return_token_ids", "stream_options"})


class _Hangup(Exception):
    """Close the connection as it is."""


@dataclass
class Server:
    """Use as a context manager; `url` is its address.

    `fault(n)` names what goes wrong with the n-th streamed request (from 0, counted from when the test sets it), None:
    nothing. `takes`: the fields beyond OpenAI's own that it knows. `token_ids`: prompts may be token ids.
    `pages`: path -> (HTTP status, body) of what else it tells. `token_s`: seconds before each chunk. `seats`: so many
    are answered at a time, the others wait.
    """

    model: str = "tiny"
    takes: frozenset[str] = EXTENSIONS
    chat_only: bool = False
    token_ids: bool = True
    usage: bool = True
    tokens_per_chunk: int = 1
    key: str | None = None
    token_s: float = 0.0
    seats: int = 10_000
    pages: dict[str, tuple[int, Any]] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)  # bodies of streamed requests
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._at_once = 0
        self._seats = asyncio.Semaphore(self.seats)
        self.breaks(None)

    def __enter__(self) -> Server:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._client, "127.0.0.1", 0), self._loop
        ).result()
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def breaks(self, fault: str | Callable[[int], str | None] | None) -> None:
        """From now on."""
        self.fault = fault if callable(fault) else lambda _: fault
        self.requests.clear()
        self.most_at_once = 0

    def die(self) -> None:
        """Refuse and end all connections."""

        async def end() -> None:
            self._server.close()
            mine = asyncio.current_task()
            tasks = [task for task in asyncio.all_tasks() if task is not mine]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line[:15] == "content-length:"), 0
                )
                body = await reader.readexactly(length)
                method, path, _ = head.split(" ", 2)
                await self._answer(writer, method, path, head, json.loads(body) if body else {})
        except (asyncio.IncompleteReadError, ConnectionError, _Hangup, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, writer: asyncio.StreamWriter, method: str, path: str, head: str, body: dict) -> None:
        if self.key is not None and f"Bearer {self.key}" not in head:
            return await _page(writer, 401, {"error": {"message": f"not a key: {head}"}})
        if path == "/v1/models" and path not in self.pages:
            return await _page(writer, 200, {"data": [{"id": self.model, "owned_by": "vllm", "max_model_len": 4096}]})
        if method == "GET" or path in self.pages:
            return await _page(writer, *self.pages.get(path, (404, {"detail": "Not Found"})))
        if path not in ("/v1/completions", "/v1/chat/completions") or (self.chat_only and "chat" not in path):
            return await _page(writer, 404, {"detail": "Not Found"})
        unknown = body.keys() & EXTENSIONS - self.takes
        if unknown or (isinstance(body.get("prompt"), list) and not self.token_ids):
            return await _page(writer, 422, {"detail": f"Unexpected fields: {sorted(unknown)}"})
        prompt_tok = _count(body)
        if not body.get("stream"):
            usage = {"prompt_tokens": prompt_tok, "completion_tokens": body["max_tokens"]}
            choices = [{"index": 0, "text": "go ", "finish_reason": "length"}]
            return await _page(writer, 200, {"choices": choices, **({"usage": usage} if self.usage else {})})
        self.requests.append(body)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            fault = self.fault(len(self.requests) - 1)
            async with self._seats:
                await self._stream(writer, body, prompt_tok, fault, head)
        finally:
            self._at_once -= 1

    async def _stream(
        self, writer: asyncio.StreamWriter, body: dict, prompt_tok: int, fault: str | None, head: str
    ) -> None:
        asked = body["max_tokens"]
        if fault == "drops before headers":
            raise _Hangup
        if fault in ("429", "500"):
            return await _page(writer, int(fault), {"error": {"message": f"no: {head}"}})
        if fault == "redirects":
            return await _page(writer, 307, {}, "Location: http://192.0.2.1/v1/completions\r\n")
        if fault == "no stream":
            return await _page(writer, 200, {"choices": [{"text": "go"}]})
        if fault == "stalls before headers":
            await asyncio.sleep(3600)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        options = body.get("stream_options", {})
        sent = 0
        while sent < asked or fault == "never ends":
            if sent >= asked // 2:
                await _break(writer, fault, head)
            if fault == "says nothing":
                break
            more = self.tokens_per_chunk if fault == "never ends" else min(self.tokens_per_chunk, asked - sent)
            sent += more
            await asyncio.sleep(self.token_s)
            choice: dict[str, Any] = {"index": 0, "finish_reason": None, **_piece(body, "go " * more)}
            if body.get("return_token_ids"):
                choice["token_ids"] = [7] * more
            chunk: dict[str, Any] = {"choices": [choice]}
            if options.get("continuous_usage_stats"):
                chunk["usage"] = {"prompt_tokens": prompt_tok, "completion_tokens": sent}
            await _event(writer, json.dumps(chunk))
        await self._ending(writer, fault, options, prompt_tok, sent)

    async def _ending(
        self, writer: asyncio.StreamWriter, fault: str | None, options: dict, prompt: int, sent: int
    ) -> None:
        if fault != "no end":
            reason = "abort" if fault == "aborts" else "length"
            await _event(writer, json.dumps({"choices": [{"index": 0, "text": "", "finish_reason": reason}]}))
        if options.get("include_usage") and self.usage:
            usage: Any = {"prompt_tokens": prompt, "completion_tokens": sent}
            if fault == "counts too few":
                usage["completion_tokens"] = 1
            elif fault == "counts too many":
                usage["completion_tokens"] = 10 * sent
            elif fault == "counts words":
                usage = {"prompt_tokens": "many", "completion_tokens": None}
            await _event(writer, json.dumps({"choices": [], "usage": usage}))
        if fault not in ("no end", "no [DONE]"):
            await _event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _break(writer: asyncio.StreamWriter, fault: str | None, head: str) -> None:
    """What can go wrong in the middle of a stream."""
    if fault == "drops in the stream":
        raise _Hangup
    if fault == "malformed JSON":
        await _event(writer, '{"choices": [{"text": "g')
    if fault == "no object":
        await _event(writer, "[1, 2]")
    if fault == "no choices":
        await _event(writer, '{"choices": "none"}')
    if fault == "no event":
        await _chunk(writer, b"<html>sorry</html>\n\n")
    if fault == "bad chunk length":
        writer.write(b"zz\r\nnothing\r\n")
        await writer.drain()
    if fault == "error in the stream":
        await _event(writer, json.dumps({"error": {"message": f"out of memory: {head}"}}))
    if fault == "stalls in the stream":
        await asyncio.sleep(3600)
    while fault == "keeps alive for ever":
        await _chunk(writer, b": still here\n\n")
        await asyncio.sleep(0.02)


def _count(body: dict) -> int:
    if "messages" in body:
        return 5 + len(body["messages"][0]["content"].split())
    prompt = body["prompt"]
    return len(prompt) if isinstance(prompt, list) else 1 + len(prompt.split())


def _piece(body: dict, text: str) -> dict[str, Any]:
    return {"delta": {"content": text}} if "messages" in body else {"text": text}


async def _event(writer: asyncio.StreamWriter, payload: str) -> None:
    await _chunk(writer, f"data: {payload}\n\n".encode())


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%s\r\n" % (len(data), data))
    await writer.drain()


async def _page(writer: asyncio.StreamWriter, status: int, body: Any, more: str = "") -> None:
    data = (body if isinstance(body, str) else json.dumps(body)).encode()
    kind = "text/plain" if isinstance(body, str) else "application/json"
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()
