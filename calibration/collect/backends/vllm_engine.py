"""The back-end "vllm": vLLM in this process, exact batches of random token ids.

The engine core runs in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0, unless the variable says otherwise): so a batch
is whole before its first step. Prefix caching is off, nothing is detokenised, every request writes exactly as many
tokens as asked for. Token times are when `LLMEngine.step` gave them; the engine's own time stamps (`RequestOutput.
metrics`) are a second view, and a note says where the two disagree. Only differences of time stamps of one clock are
used: arrival times are wall clock, all others monotonic.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from calibration.collect.backends import BackendOptions
from calibration.collect.backends.vllm_facts import read_facts
from calibration.collect.point import BackendError, EngineFacts, Observation, Point, RequestTimes
from simulator.model import load_model

LOADS = ("static_batch", "burst", "closed_loop")
IN_PROCESS = "VLLM_ENABLE_V1_MULTIPROCESSING"
WARM_UP_TOK = 16
# Ids of ordinary words in every vocabulary: special tokens and placeholders of images stand at the ends.
LEAST_ID, MOST_ID = 256, 10_000
DISAGREE = 0.05  # between the engine's and the client's time from first to last token
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


def open_backend(options: BackendOptions) -> VllmEngine:
    """The back-end with its engine started. BackendError when vLLM refuses the model or the settings."""
    if options.base_url:
        raise BackendError("the vllm back-end runs in this process, expected no base_url; use openai or vllm-bench")
    if options.device == "cpu":
        raise BackendError("the vllm back-end measures GPUs, found device cpu; expected cuda")
    os.environ.setdefault(IN_PROCESS, "0")
    import vllm

    backend = VllmEngine(options, vllm)
    backend.start(options.cuda_graphs)
    return backend


@dataclass
class _Request:
    """A request while it runs."""

    send_s: float
    input_tok: int
    token_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    cached_tok: int | None = None
    metrics: Any = None
    finished: bool = False

    def times(self) -> RequestTimes:
        """What the record keeps; a request that has not finished was cut."""
        several = any(count > 1 for count in self.counts)
        return RequestTimes(
            self.send_s, tuple(self.token_s), self.input_tok, sum(self.counts), "ok" if self.finished else "cut",
            self.cached_tok, tuple(self.counts) if several else None,
        )  # fmt: skip


class VllmEngine:
    """One vLLM engine, started anew when a point wants CUDA graphs and the last one did not, or the other way round."""

    def __init__(self, options: BackendOptions, vllm: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._options, self._vllm, self._clock = options, vllm, clock
        self._llm: Any = None
        self._graphs: bool | None = None
        self._sent = 0

    def start(self, graphs: bool | None) -> None:
        """Start the engine; graphs None: as vLLM does by default."""
        self._stop()
        try:
            self._llm = self._vllm.LLM(**engine_arguments(self._options, graphs))
        except Exception as error:  # out of memory, a model that is not there, settings that do not go together
            raise BackendError(f"vLLM does not start: {_first_line(error)}") from error
        self._graphs = graphs

    def facts(self) -> EngineFacts:
        """The configuration that vLLM has resolved."""
        return read_facts(self._engine(), self._options.model, self._options.dummy_weights)

    def warm_up(self, point: Point) -> None:
        """The point's prompts and a few tokens of output, unmeasured."""
        self._prepare(point)
        self._drive(point, seed=0, output_tok=min(point.output_tok, WARM_UP_TOK))

    def run(self, point: Point, seed: int) -> Observation:
        """One measured run. BackendError for a load that it cannot run, or when the engine fails."""
        self._prepare(point)
        requests, start_s, ends = self._drive(point, seed, point.output_tok)
        edges = [start_s, *ends]
        return Observation(
            requests=tuple(request.times() for request in requests),
            start_s=start_s,
            end_s=max(request.token_s[-1] for request in requests),
            steps_s=tuple(b - a for a, b in pairwise(edges)),
            notes=tuple(_notes(requests)),
        )

    def close(self) -> None:
        """Stop the engine and give the GPU's memory back."""
        self._stop()

    def _engine(self) -> Any:
        if self._llm is None:
            raise BackendError("the vllm back-end is closed")
        return self._llm

    def _prepare(self, point: Point) -> None:
        """Refuse what cannot run; have the engine that the point wants."""
        if point.load not in LOADS:
            raise BackendError(f"the vllm back-end runs {', '.join(LOADS)}, found load '{point.load}'")
        self._engine()
        if point.cuda_graphs is not None and point.cuda_graphs != self._graphs:
            self.start(point.cuda_graphs)

    def _drive(self, point: Point, seed: int, output_tok: int) -> tuple[list[_Request], float, list[float]]:
        """(requests, start, ends of the steps that gave tokens) of one run."""
        engine = self._llm.llm_engine
        # No min_tokens: vLLM would mask the ends of sequences at every step, which its server does not do.
        params = self._vllm.SamplingParams(
            temperature=0.0, ignore_eos=True, max_tokens=output_tok, detokenize=False,
            output_kind=import_module("vllm.sampling_params").RequestOutputKind.DELTA,
        )  # fmt: skip
        prompts = deque(self._prompts(point, seed))
        at_once = point.concurrency if point.load == "closed_loop" else len(prompts)
        requests: dict[str, _Request] = {}
        ends: list[float] = []
        try:
            start_s = self._clock()
            for _ in range(min(at_once, len(prompts))):
                self._send(engine, prompts.popleft(), params, requests)
            while engine.has_unfinished_requests():
                outputs = engine.step()
                now = self._clock()
                finished = self._take(outputs, requests, now)
                if outputs:
                    ends.append(now)
                for _ in range(min(finished, len(prompts))):
                    self._send(engine, prompts.popleft(), params, requests)
        except BaseException as error:
            _abort(engine, [name for name, request in requests.items() if not request.finished])
            if isinstance(error, BackendError) or not isinstance(error, Exception):
                raise
            raise BackendError(f"vLLM stopped: {_first_line(error)}") from error
        if not all(request.finished for request in requests.values()):
            raise BackendError("vLLM ended a run without finishing all requests")
        return list(requests.values()), start_s, ends

    def _prompts(self, point: Point, seed: int) -> list[list[int]]:
        """Random token ids, all prompts of equal length."""
        vocabulary = self._llm.llm_engine.vllm_config.model_config.get_vocab_size()
        least = min(LEAST_ID, vocabulary // 2)
        shape = (point.num_requests, point.input_tok)
        return np.random.default_rng(seed).integers(least, min(MOST_ID, vocabulary), shape).tolist()

    def _send(self, engine: Any, ids: list[int], params: Any, requests: dict[str, _Request]) -> None:
        name, self._sent = f"r{self._sent}", self._sent + 1
        requests[name] = _Request(self._clock(), len(ids))
        # As vLLM's own renderer makes it of token ids: nothing is parsed, and text nobody has.
        engine.add_request(name, {"type": "token", "prompt_token_ids": ids}, params)

    def _take(self, outputs: list[Any], requests: dict[str, _Request], now: float) -> int:
        """Note the new tokens of a step; the number of requests that finished in it."""
        finished = 0
        for output in outputs:
            request = requests.get(output.request_id)
            if request is None:
                continue  # of a run that an interruption has left behind
            new = len(output.outputs[0].token_ids) if output.outputs else 0
            if new:
                request.token_s.append(now)
                request.counts.append(new)
            if output.finished:
                request.finished, finished = True, finished + 1
                request.metrics = getattr(output, "metrics", None)
                request.cached_tok = getattr(output, "num_cached_tokens", None)
        return finished

    def _stop(self) -> None:
        llm, self._llm = self._llm, None
        if llm is None:
            return
        shutdown = getattr(getattr(llm.llm_engine, "engine_core", None), "shutdown", None)
        if shutdown is not None:
            shutdown()
        del llm
        gc.collect()
        cuda = getattr(sys.modules.get("torch"), "cuda", None)
        if cuda is not None and cuda.is_available():
            cuda.empty_cache()


def _abort(engine: Any, names: list[str]) -> None:
    """Take requests of a run that ended early out of the engine: they would run beside those of the next one."""
    with suppress(Exception):  # an engine that has died has none
        engine.abort_request(names)


def engine_arguments(options: BackendOptions, graphs: bool | None) -> dict[str, Any]:
    """The arguments of vllm.LLM: what measuring needs, under what the user sets."""
    found: dict[str, Any] = {
        "model": model_argument(options.model, options.dummy_weights),
        "enable_prefix_caching": False,
        "disable_log_stats": False,  # otherwise RequestOutput.metrics is None
        "skip_tokenizer_init": True,  # prompts are token ids, outputs are not turned into text
        "seed": options.seed,
        "tensor_parallel_size": options.tensor_parallel_size,
    }
    if options.dummy_weights:
        found["load_format"] = "dummy"
    if graphs is not None:
        found["enforce_eager"] = not graphs
    if options.dtype:
        found["dtype"] = _DTYPES.get(options.dtype, options.dtype)
    return {**found, **options.settings}


def model_argument(name: str, dummy_weights: bool) -> str:
    """vLLM's `model`: the id on Hugging Face, or the folder of a config.json.

    BackendError for a config without weights, unless they are dummies.
    """
    path = Path(name).expanduser()
    if not (name.endswith(".json") or path.exists()):
        return load_model(name).name
    folder = path.parent if path.suffix == ".json" else path
    if path.suffix == ".json" and path.name != "config.json":
        raise BackendError(f"model '{name}': vLLM reads a folder with a config.json, found another file name")
    if not dummy_weights and not any(folder.glob("*.safetensors")) and not any(folder.glob("*.bin")):
        raise BackendError(f"model '{name}' has no weights beside its config.json, expected them or --dummy-weights")
    return str(folder)


def _notes(requests: list[_Request]) -> list[str]:
    """What the engine's own time stamps and counters say."""
    known = [request for request in requests if request.metrics is not None]
    preempted = sum(getattr(request.metrics, "num_preemptions", 0) or 0 for request in known)
    notes = [f"preemptions: {preempted}"] if preempted else []
    spans = [(_engine_span(request), request.token_s[-1] - request.token_s[0]) for request in known]
    spans = [(own, seen) for own, seen in spans if own and seen > 0.0]
    if spans:
        ratio = sum(seen for _, seen in spans) / sum(own for own, _ in spans)
        if abs(ratio - 1.0) > DISAGREE:
            notes.append(f"first to last token: {ratio:.3f} of the engine's own time")
    elif not known:
        notes.append("no time stamps of the engine (disable_log_stats)")
    return notes


def _engine_span(request: _Request) -> float | None:
    """Seconds from first to last token on the engine's monotonic clock."""
    first, last = (getattr(request.metrics, name, None) for name in ("first_token_ts", "last_token_ts"))
    return last - first if first and last else None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
