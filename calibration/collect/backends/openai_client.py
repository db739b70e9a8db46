"""The `openai` back-end: any server with OpenAI's streaming API, measured from outside.

vLLM, SGLang, TensorRT-LLM, llama.cpp's server, transformers serve. The client runs in one process and one event loop:
above some hundreds of requests per second it queues behind itself, which the notes of each run say.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

from calibration.collect.backends import BackendOptions
from calibration.collect.backends.openai_address import key_from_environment, parse_address
from calibration.collect.backends.openai_dialect import Dialect, Prompt, negotiate, prompt_tokens
from calibration.collect.backends.openai_facts import model_config, read_facts, served_model
from calibration.collect.backends.openai_http import Http
from calibration.collect.backends.openai_notes import notes_of, queue_s, request_times
from calibration.collect.backends.openai_prompts import PromptMaker
from calibration.collect.backends.openai_run import Run, carry_out
from calibration.collect.backends.openai_settings import read_settings
from calibration.collect.backends.openai_stream import message_of, shown
from calibration.collect.loads import traffic_of
from calibration.collect.point import BackendError, EngineFacts, Observation, Point
from simulator.workload.traffic import Traffic

_WARM_UP_REQUESTS = 64  # of a point with more, so many are enough to compile and to fill pools


def open_backend(options: BackendOptions) -> OpenAiBackend:
    """A client of the server at `options.base_url`. BackendError when it is not allowed, or does not answer."""
    backend = OpenAiBackend(options)
    try:
        backend.facts()
    except BaseException:
        backend.close()
        raise
    return backend


class OpenAiBackend:
    """A server that is there already. What it understands is found out before the first run."""

    def __init__(self, options: BackendOptions) -> None:
        self._options = options
        self._settings, self._stated = read_settings(options.settings)
        if options.trace is not None and self._settings.shared_prefix_tok:
            raise BackendError("shared_prefix_tok: a trace has its own prompts, expected share_prefixes=true instead")
        if options.trace is None and self._settings.share_prefixes:
            raise BackendError("share_prefixes is for the prompts of a trace, expected shared_prefix_tok=N instead")
        self._address = parse_address(options.base_url, options.allow_remote)
        self._secret = key_from_environment(self._settings.api_key_env)
        import aiohttp  # noqa: F401  before anything is opened: the message then names what to install

        self._runner = asyncio.Runner()
        self._http = self._wait(self._connect())
        self._dialect: Dialect | None = None
        self._prompts: PromptMaker | None = None

    def facts(self) -> EngineFacts:
        """Asked anew each time: a server may have been started again with another configuration."""
        return self._wait(read_facts(self._http, self._options, self._settings, self._stated))

    def warm_up(self, point: Point) -> None:
        """Requests of the point's shape, unmeasured; those of an open loop all at once.

        BackendError when none of them ends well.
        """
        if point.load == "open_loop":
            point = replace(point, load="burst", request_rate_rps=None)
        if point.num_requests > _WARM_UP_REQUESTS:
            batch = max(point.concurrency, _WARM_UP_REQUESTS)
            point = replace(point, num_requests=min(point.num_requests, batch))
        run, _ = self._run(self._traffic(point, seed=0))
        if not any(outcome.ok for outcome in run.outcomes):
            raise BackendError(f"no request of the warm-up ended well, the first because: {run.outcomes[0].reason}")

    def run(self, point: Point, seed: int) -> Observation:
        """One measured run. Requests that fail are in it, with the reason as their status.

        `send_s` is when a request really went out; how much later than planned, the notes say.
        """
        traffic = self._traffic(point, seed)
        run, first = self._run(traffic)
        requests = tuple(
            request_times(outcome, planned_tok)
            for outcome, planned_tok in zip(run.outcomes, traffic.prompt_tok.tolist())
        )
        notes = (*self._standing_notes(point), f"prompts are numbered from {first} on", *notes_of(run, traffic))
        return Observation(requests, run.start_s, run.end_s, notes=notes, client_queue_s=queue_s(run))

    def close(self) -> None:
        """Close the connections; the server stays."""
        try:
            self._wait(self._http.close())
        finally:
            self._runner.close()

    async def _connect(self) -> Http:
        return Http(self._address, self._secret, self._settings)

    def _traffic(self, point: Point, seed: int) -> Traffic:
        return traffic_of(point, seed, self._options.trace, self._settings.shared_prefix_tok)

    def _run(self, traffic: Traffic) -> tuple[Run, int]:
        """(the run, the number of its first prompt)."""
        dialect, maker = self._ready()
        self._wait(maker.prepare(traffic))
        first = maker.next_number
        bodies = [
            dialect.body(prompt, tokens) for prompt, tokens in zip(maker.prompts(traffic), traffic.output_tok.tolist())
        ]
        return self._wait(carry_out(self._http, dialect.path, traffic, bodies, self._settings.run_timeout_s)), first

    def _ready(self) -> tuple[Dialect, PromptMaker]:
        """How to ask and what to ask with; found out once."""
        if self._dialect is None or self._prompts is None:
            vocab_size = self._settings.vocab_size or _vocabulary(model_config(self._options.model))
            self._dialect = self._wait(self._negotiate(vocab_size))
            share = self._settings.share_prefixes or self._settings.shared_prefix_tok > 0
            ids_below = vocab_size if self._dialect.ids else None
            self._prompts = PromptMaker(self._count, ids_below, share, self._options.salt)
        return self._dialect, self._prompts

    async def _negotiate(self, vocab_size: int | None) -> Dialect:
        model, _ = await served_model(self._http, self._options, self._settings)
        return await negotiate(self._http, model, self._settings, vocab_size)

    async def _count(self, prompt: Prompt) -> int | None:
        """Tokens of `prompt`, by the usage of a request for one token."""
        dialect = self._dialect
        status, payload = await self._http.post(dialect.path, dialect.body(prompt, 1, stream=False))
        if status != 200:
            raise BackendError(
                f"the server does not count a prompt ({'no answer' if status is None else f'HTTP {status}'}): "
                f"{shown(message_of(payload))}"
            )
        return prompt_tokens(payload)

    def _standing_notes(self, point: Point) -> list[str]:
        """What holds for every run against this server."""
        notes = [*self._dialect.notes, *self._prompts.notes]
        if self._dialect.model != self._options.model:
            notes.append(f"the server calls the model '{self._dialect.model}'")
        if point.cuda_graphs is not None:
            notes.append("cuda_graphs of the point is not checked: a server that runs cannot be told")
        if self._secret and not self._address.loopback and self._address.root.startswith("http:"):
            notes.append("the API key went over a connection that is not encrypted")
        return notes

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)


def _vocabulary(config: dict[str, Any]) -> int | None:
    """vocab_size of a config.json, also of one that nests its text model."""
    nested = config.get("text_config")
    size = config.get("vocab_size") or (nested.get("vocab_size") if isinstance(nested, dict) else None)
    return size if isinstance(size, int) and size > 1 else None
