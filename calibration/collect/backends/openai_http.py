"""Requests to the server over HTTP: no retries, no redirects, no proxy; every failure is a status, never an exception.

All times are `clock` seconds: one monotonic clock per process.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

from calibration.collect.backends.openai_address import Address, Secret
from calibration.collect.backends.openai_settings import ClientSettings
from calibration.collect.backends.openai_stream import Answer, EventLines, StreamError, message_of, shown

clock = time.perf_counter

_AFTER_END_S = 2.0  # wait for usage, [DONE] and the end of the body, when the answer itself is whole
_ERROR_BYTE = 65536  # of an error page are read
_IDLE_S = 4.0  # below the 5 s of uvicorn: a request must not meet a connection that the server is closing


@dataclass
class Outcome:
    """What became of one request. `http_status` None: no answer came."""

    asked_tok: int
    planned_s: float = 0.0
    send_s: float = 0.0
    end_s: float = 0.0
    status: str = "cut"  # until it ends
    http_status: int | None = None
    shared_reads: int = 0  # chunks that came in one read with another
    answer: Answer = field(init=False)

    def __post_init__(self) -> None:
        self.answer = Answer(self.asked_tok)

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    @property
    def refused(self) -> bool:
        """Whether the server refused the request as it is, rather than failed at it."""
        return self.http_status in (400, 404, 405, 415, 422, 501)

    @property
    def reason(self) -> str:
        return self.status.removeprefix("failed: ")


class Http:
    """Connections to one server, kept open between requests. To be made and used in one event loop."""

    def __init__(self, address: Address, secret: Secret, settings: ClientSettings) -> None:
        import aiohttp

        self._aiohttp = aiohttp
        self._root, self._secret, self._settings = address.root, secret, settings
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=settings.connect_timeout_s),
            headers={**secret.headers(), "Accept-Encoding": "identity"},
            trust_env=False,
            read_bufsize=2**20,
        )

    async def close(self) -> None:
        await self._session.close()

    async def get(self, path: str) -> tuple[int | None, Any]:
        """(HTTP status, decoded JSON, or text where it is none). (None, reason) when nothing answered."""
        return await self._whole("GET", path, None)

    async def post(self, path: str, body: bytes) -> tuple[int | None, Any]:
        """As `get`, with a body of JSON."""
        return await self._whole("POST", path, body)

    async def _whole(self, method: str, path: str, body: bytes | None) -> tuple[int | None, Any]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(self._settings.first_token_timeout_s):
                request = self._session.request(
                    method, self._root + path, data=body, headers=headers, allow_redirects=False
                )
                async with request as response:
                    text = (await response.read()).decode("utf-8", errors="replace")
        except (self._aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            return None, self._in_words(error)
        try:
            return response.status, self._secret.hide_in(json.loads(text))
        except (ValueError, RecursionError):
            return response.status, self._secret.hide(text)

    async def stream(self, path: str, body: bytes, outcome: Outcome) -> None:
        """Send `body` now and fill `outcome` with what comes, until the answer ends or fails."""
        outcome.send_s = outcome.end_s = clock()
        try:
            request = self._session.post(
                self._root + path, data=body, headers={"Content-Type": "application/json"}, allow_redirects=False
            )
            async with asyncio.timeout_at(self._loop_time(outcome.send_s + self._settings.first_token_timeout_s)):
                response = await request
            async with response:
                outcome.http_status = response.status
                fault = await self._answer(response, outcome)
        except StreamError as error:
            fault = str(error)
        except (self._aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            fault = self._in_words(error, outcome)
        outcome.end_s = max(outcome.end_s, clock()) if fault else outcome.answer.arrival_s[-1]
        outcome.status = "ok" if fault is None else f"failed: {self._secret.hide(fault)}"

    async def _answer(self, response: Any, outcome: Outcome) -> str | None:
        """Read the answer; why it is none."""
        kind = response.headers.get("Content-Type", "")
        if response.status != 200:
            async with asyncio.timeout(self._settings.stall_timeout_s):
                page = await response.content.read(_ERROR_BYTE)
            return f"HTTP {response.status}: {shown(self._secret.hide(_message(page))) or response.reason}"
        if kind.startswith("application/json"):
            return "the answer is not a stream, although one was asked for"
        await self._events(response, outcome)
        return outcome.answer.fault()

    async def _events(self, response: Any, outcome: Outcome) -> None:
        """Take events until the body ends. Once the answer is whole, what may follow is waited for only shortly."""
        answer, lines = outcome.answer, EventLines(self._secret.hide)
        deadline_s = outcome.send_s + self._settings.first_token_timeout_s
        while True:
            try:
                async with asyncio.timeout_at(self._loop_time(deadline_s)):
                    data = await response.content.readany()
            except (TimeoutError, self._aiohttp.ClientError, OSError):
                if answer.ended():
                    return
                raise
            now_s = clock()
            payloads = lines.feed(data) if data else lines.end()
            brought = sum(answer.take(payload, now_s) for payload in payloads)
            outcome.shared_reads += brought if brought > 1 else 0
            if not data:
                return
            if answer.ended():
                deadline_s = min(deadline_s, now_s + _AFTER_END_S)
            elif brought:  # comments that keep a connection alive are no tokens
                deadline_s = now_s + self._settings.stall_timeout_s

    @staticmethod
    def _loop_time(at_s: float) -> float:
        """A time of `clock` as the event loop counts."""
        return asyncio.get_running_loop().time() + at_s - clock()

    def _in_words(self, error: Exception, outcome: Outcome | None = None) -> str:
        """What went wrong, for a status."""
        chunks = len(outcome.answer.arrival_s) if outcome else 0
        if isinstance(error, self._aiohttp.ClientConnectorError):
            text = f"no connection to {self._root}: {error.strerror or type(error.os_error).__name__}"
        elif isinstance(error, self._aiohttp.ServerTimeoutError) and not chunks:
            text = f"no connection within {self._settings.connect_timeout_s:g} s"
        elif isinstance(error, TimeoutError) and chunks:
            text = f"stalled: nothing for {self._settings.stall_timeout_s:g} s after {chunks} chunks"
        elif isinstance(error, TimeoutError):
            text = f"no token within {self._settings.first_token_timeout_s:g} s"
        elif isinstance(error, self._aiohttp.ClientResponseError):
            text = f"malformed HTTP after {chunks} chunks"
        elif outcome is not None and outcome.http_status is not None:
            text = f"the connection broke off after {chunks} chunks ({type(error).__name__})"
        elif isinstance(error, (self._aiohttp.ServerDisconnectedError, ConnectionError)):
            text = "the server closed the connection before it answered"
        else:
            text = f"{type(error).__name__}: {shown(self._secret.hide(str(error)))}"
        return self._secret.hide(text)


def _message(page: bytes) -> str:
    """The message of an error page."""
    text = page.decode("utf-8", errors="replace")
    try:
        return message_of(json.loads(text))
    except (ValueError, RecursionError):
        return text
