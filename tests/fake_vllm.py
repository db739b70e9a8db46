"""A module with vLLM's call surface, as far as `calibration.collect.backends.vllm_engine` uses it. No GPU, no model.

Names and behaviour follow the public Python API of vLLM 0.33: `LLM(...)` with `llm_engine.add_request`, `step`,
`has_unfinished_requests` and `vllm_config`, `SamplingParams`, `RequestOutput` with `metrics` only when statistics are
on. Its engine takes whole prompts and has a made-up clock: a step takes `STEP_S`, and `TOKEN_S` per prompt token.

    vllm = install(monkeypatch)          # sys.modules["vllm"], and what it was asked for in vllm.made
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType, SimpleNamespace

STEP_S, TOKEN_S, ADD_S = 0.010, 1e-5, 1e-4
VOCABULARY = 32_000


class RequestOutputKind(Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    temperature: float = 1.0
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = 16
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass
class _Running:
    name: str
    ids: list[int]
    params: SamplingParams
    written: int = 0
    metrics: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(num_preemptions=0))


class Engine:
    """A step computes all waiting prompts and one token of everything that runs."""

    def __init__(self, config: SimpleNamespace, statistics: bool, clock: Clock) -> None:
        self.vllm_config, self.statistics, self.clock = config, statistics, clock
        self.waiting: list[_Running] = []
        self.running: list[_Running] = []
        self.steps: list[tuple[int, int]] = []  # (prompts, sequences that decode) of every step
        self.prompts: list[list[int]] = []
        self.params: list[SamplingParams] = []
        self.fail_at_step: int | None = None
        self.refuse_after: int | None = None  # prompts that are taken in
        self.refusal: BaseException = ValueError("no room")
        self.engine_slower = 1.0  # of the engine's own time stamps against the clock
        self.engine_core = SimpleNamespace(shutdown=self._shut_down)
        self.shut_down = False

    def _shut_down(self) -> None:
        self.shut_down = True

    def add_request(self, request_id: str, prompt: dict, params: SamplingParams) -> str:
        assert isinstance(request_id, str) and set(prompt) == {"type", "prompt_token_ids"} and prompt["type"] == "token"
        assert all(0 <= token < VOCABULARY for token in prompt["prompt_token_ids"])
        if params.min_tokens > params.max_tokens:
            raise ValueError("min_tokens must be less than or equal to max_tokens")
        if self.refuse_after is not None and len(self.prompts) >= self.refuse_after:
            raise self.refusal
        self.clock.now_s += ADD_S
        self.prompts.append(prompt["prompt_token_ids"])
        self.params.append(params)
        self.waiting.append(_Running(request_id, prompt["prompt_token_ids"], params))
        return f"{request_id}-0a1b2c3d"  # the engine's own name, which outputs do not carry

    def abort_request(self, request_ids: list[str], internal: bool = False) -> None:
        for queue in (self.waiting, self.running):
            queue[:] = [request for request in queue if request.name not in request_ids]

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> list[SimpleNamespace]:
        if self.fail_at_step is not None and len(self.steps) >= self.fail_at_step:
            raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")
        seats = self.vllm_config.scheduler_config.max_num_seqs - len(self.running)
        joined, self.waiting = self.waiting[:seats], self.waiting[seats:]
        self.steps.append((len(joined), len(self.running)))
        self.running += joined
        self.clock.now_s += STEP_S + TOKEN_S * sum(len(request.ids) for request in joined)
        return [self._output(request) for request in list(self.running)]

    def _output(self, request: _Running) -> SimpleNamespace:
        request.written += 1
        own_s = self.clock.now_s * self.engine_slower
        if request.written == 1:
            request.metrics.first_token_ts = own_s
        request.metrics.last_token_ts = own_s
        finished = request.written == request.params.max_tokens
        if finished:
            self.running.remove(request)
        delta = request.params.output_kind is RequestOutputKind.DELTA
        ids = [7] if delta else [7] * request.written
        return SimpleNamespace(
            request_id=request.name, outputs=[SimpleNamespace(token_ids=ids)], finished=finished,
            num_cached_tokens=0, metrics=request.metrics if self.statistics else None,
        )  # fmt: skip


class Clock:
    """Seconds that only pass when the engine works."""

    def __init__(self) -> None:
        self.now_s = 500.0

    def __call__(self) -> float:
        return self.now_s


def config_of(arguments: dict) -> SimpleNamespace:
    """What vLLM would resolve the arguments to on an L40S."""
    eager = arguments.get("enforce_eager", False)
    return SimpleNamespace(
        model_config=SimpleNamespace(
            dtype=f"torch.{arguments.get('dtype', 'bfloat16')}", quantization=arguments.get("quantization"),
            enforce_eager=eager, max_model_len=arguments.get("max_model_len", 40_960), seed=arguments["seed"],
            hf_config=SimpleNamespace(to_dict=lambda: {"model_type": "qwen3"}), get_vocab_size=lambda: VOCABULARY,
        ),
        scheduler_config=SimpleNamespace(
            max_num_seqs=arguments.get("max_num_seqs", 256), max_num_batched_tokens=8192, enable_chunked_prefill=True,
            async_scheduling=False,
        ),
        cache_config=SimpleNamespace(
            cache_dtype="auto", gpu_memory_utilization=arguments.get("gpu_memory_utilization", 0.92),
            enable_prefix_caching=arguments["enable_prefix_caching"], num_gpu_blocks=9000, block_size=16,
            kv_cache_size_tokens=144_000,
        ),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=arguments["tensor_parallel_size"], pipeline_parallel_size=1,
            world_size=arguments["tensor_parallel_size"], enable_expert_parallel=False,
        ),
        compilation_config=SimpleNamespace(
            cudagraph_mode=SimpleNamespace(name="NONE" if eager else "FULL_AND_PIECEWISE"),
            max_cudagraph_capture_size=512,
        ),
    )  # fmt: skip


def install(monkeypatch, version: str = "0.33.0") -> ModuleType:
    """Put a fresh fake in the place of vLLM; `made` collects (arguments, engine) of every LLM."""
    vllm, parameters = ModuleType("vllm"), ModuleType("vllm.sampling_params")
    vllm.clock, vllm.made, vllm.__version__ = Clock(), [], version

    class LLM:
        def __init__(self, model: str, **arguments) -> None:
            if arguments.get("max_model_len", 0) > 40_960:
                raise ValueError("User-specified max_model_len is greater than the derived max_model_len")
            everything = {"model": model, **arguments}
            statistics = not arguments.get("disable_log_stats", True)
            self.llm_engine = Engine(config_of(everything), statistics, vllm.clock)
            vllm.made.append((everything, self.llm_engine))

    vllm.LLM, vllm.SamplingParams = LLM, SamplingParams
    parameters.RequestOutputKind = RequestOutputKind
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setitem(sys.modules, "vllm.sampling_params", parameters)
    return vllm
