"""Which points could be measured: a grid of batch, prompt and output lengths, cut at what the engine can take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from calibration.collect.loads import ROUNDS, requests_at
from calibration.collect.point import EngineFacts, Point
from calibration.collect.to_records import kv_capacity_tok
from simulator.errors import UserError
from simulator.instance import InstanceChoice, build_instance
from simulator.model import Model

# Sizes of points that may be fitted, and between them those of held-out points. An output of one token is a prompt
# alone; long ones show what a longer context costs.
BATCH, BATCH_BETWEEN = (1, 4, 16, 64, 256), (2, 8, 32, 128)
INPUT_TOK, INPUT_BETWEEN = (32, 128, 512, 2048, 8192), (64, 256, 1024, 4096)
OUTPUT_TOK, OUTPUT_BETWEEN = (1, 32, 128), (16, 64)
WHOLE_BATCH_TOK = 16_384  # prompt tokens of a batch that is computed in one step: activations need room, too
# What each back-end can run; the first is what it runs where nobody says.
LOADS: dict[str, tuple[str, ...]] = {
    "vllm": ("static_batch", "burst", "closed_loop"),
    "transformers": ("static_batch",),
    "openai": ("closed_loop", "open_loop", "burst", "static_batch"),
    "vllm-bench": ("closed_loop", "open_loop", "burst"),
}
TRACES = ("openai",)  # back-ends that send the requests of a trace


@dataclass(frozen=True)
class Grid:
    """Sizes whose combinations are points. In an open loop `rates` (requests per second) stand in place of `batch`.

    `num_requests` None: as many as the load and its size need. Where lengths come from a trace those here are (1,).
    An open loop whose rates are still to be chosen has none.
    """

    batch: tuple[int, ...]
    input_tok: tuple[int, ...]
    output_tok: tuple[int, ...]
    rates: tuple[float | None, ...] = ()  # None: at the times of the trace
    num_requests: int | None = None


FITTED = Grid(BATCH, INPUT_TOK, OUTPUT_TOK)
BETWEEN = Grid(BATCH_BETWEEN, INPUT_BETWEEN, OUTPUT_BETWEEN)


@dataclass(frozen=True)
class Limits:
    """What one run may hold, as the engine says or as planned. `whole_tok`: prompt tokens of a batch, None: any."""

    longest_tok: int
    kv_tok: float | None
    seats: int | None
    whole_tok: int | None = None

    def why_not(self, point: Point) -> str | None:
        """Why the engine cannot run a point; None: it can."""
        length = point.input_tok + point.output_tok
        if point.most_tok > self.longest_tok:
            return f"{point.most_tok} tokens, max_model_len is {self.longest_tok}"
        if self.kv_tok is not None and point.most_tok > self.kv_tok:
            return f"{point.most_tok} tokens, the KV cache holds {self.kv_tok:.0f}"
        if point.load == "open_loop":
            return None  # what does not fit at a time waits
        if self.kv_tok is not None and point.concurrency * length > self.kv_tok:
            return f"{point.concurrency} x {length} tokens, the KV cache holds {self.kv_tok:.0f}"
        if self.seats is not None and point.concurrency > self.seats:
            return f"a batch of {point.concurrency}, max_num_seqs is {self.seats}"
        if self.whole_tok is not None and point.concurrency * point.input_tok > self.whole_tok:
            return (
                f"{point.concurrency * point.input_tok} prompt tokens in one step, at most {self.whole_tok} are tried"
            )
        return None


def limits_of(facts: EngineFacts, model: Model, kv_tok: float | None = None) -> Limits:
    """The limits that an engine's resolved configuration states. kv_tok: room for KV cache where it does not say."""
    settings = facts.settings
    whole = None
    if settings.get("chunked_prefill") is False:
        whole = settings.get("max_num_batched_tokens") or WHOLE_BATCH_TOK
    return Limits(
        longest_tok=min(settings.get("max_model_len") or model.max_position_embeddings, model.max_position_embeddings),
        kv_tok=kv_capacity_tok(facts) or kv_tok,
        seats=settings.get("max_num_seqs"),
        whole_tok=whole,
    )


def points_of_grid(
    grid: Grid, load: str, graphs: Sequence[bool | None] = (None,), held_out: bool = False
) -> list[Point]:
    """All combinations of a grid under one load, in a fixed order.

    Open loops are for validation only: `calibrate fit` has no use for them.
    """
    sizes = grid.rates if load == "open_loop" else grid.batch
    return [
        _point(load, size, prompt, output, grid.num_requests, graph, held_out)
        for graph, size, prompt, output in product(graphs, sizes, grid.input_tok, grid.output_tok)
    ]


def _point(
    load: str, size: float | None, input_tok: int, output_tok: int, num_requests: int | None, graph: bool | None,
    held_out: bool,
) -> Point:  # fmt: skip
    """One point; `size`: batch, number of clients, requests of a burst, or rate of an open loop."""
    if load == "open_loop":
        count = num_requests or requests_at(size)
        return Point(load, 1, input_tok, output_tok, count, size, cuda_graphs=graph, held_out=True)
    count = num_requests or (ROUNDS * size if load == "closed_loop" else size)
    return Point(load, size, input_tok, output_tok, count, cuda_graphs=graph, held_out=held_out)


def possible(points: Iterable[Point], limits: Limits) -> tuple[list[Point], list[str]]:
    """(points that the engine can run, why each of the others cannot)."""
    kept, refused = [], []
    for point in points:
        why = limits.why_not(point)
        if why is None:
            kept.append(point)
        else:
            refused.append(f"{point.key}: {why}")
    return kept, refused


def expected_facts(asked: InstanceChoice, *, server: bool, engine: str, version: str | None) -> EngineFacts:
    """What an engine would say of itself, for a plan before it runs. UserError when the model does not fit.

    Plain PyTorch ("transformers") takes whole batches in one step and records no graphs; others are planned like vLLM.
    """
    plain = engine == "transformers"
    instance = build_instance(asked, served=None if plain else server)
    settings, precision = instance.settings, instance.precision
    known = {
        "max_model_len": settings.max_model_len,
        "prefix_caching": settings.enable_prefix_caching and server,
        "chunked_prefill": not plain,
        "cuda_graphs": instance.step_model.cuda_graphs and not plain,
        "kv_capacity_tok": instance.memory.kv_capacity_tok,
    }
    if not plain:
        known |= {
            "max_num_seqs": settings.max_num_seqs,
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
        }
    return EngineFacts(
        engine=engine,
        engine_version=version,
        model=asked.model or instance.model.name,
        model_config={},
        weight_dtype=precision.weights,
        activation_dtype=precision.activations,
        kv_dtype=precision.kv_cache,
        settings=known,
        tp=asked.tensor_parallel_size,
        n_gpus=asked.tensor_parallel_size,
    )


def at_least_one(points: Sequence[Point], refused: Sequence[str]) -> None:
    """UserError when nothing of a grid can be measured."""
    if not points:
        raise UserError(f"no point of the grid can be measured: {refused[0] if refused else 'the grid is empty'}")
