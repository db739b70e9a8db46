"""ParaThinker: what more paths cost."""

from __future__ import annotations

from functools import cache

import numpy as np

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number

TITLE = "ParaThinker (arXiv:2509.04475)"
ABOUT = (
    "Parallel paths that end together and a summary on their KV caches, for every limit of a path in the paper's two "
    "figures. Latencies are compared as ratios to one path: GPU and lengths are not stated."
)
# Models and limits L_max of Figures 3 and 4.
LIMITS = {
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (1024, 2048, 3072, 4096, 5120, 6144),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": (4096, 8192, 12288, 16384, 20480, 24576),
}
RELEASED = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"  # the model that the authors released, with their engine
ASSUMED = (
    "GPU: A100 SXM 80GB (a third party writes of an A800, its export version)",
    "all paths run up to the limit; a summary has 256 tokens",
    "vLLM 0.7 as it is: what the authors' changes to it cost is unknown",
)
TOLERANCE = 0.10  # of the overhead, not of the latency: of 7.1 %, not of 107.1 %
WHICH = (
    "'on average' over which runs is not stated, and the answer turns on it: of four readings one is met. With CUDA "
    "graphs the time per sequence of the host and the sampler weighs more; the longer paths of the 7B model read "
    "more KV"
)


def compare() -> list[Comparison]:
    """What 8 paths cost on average, read in four ways, and 16 at worst."""
    eight = number(strategy="ParaThinker", config="8 paths")
    sixteen = number(strategy="ParaThinker", config="16 paths vs 1 path")
    released = {RELEASED: LIMITS[RELEASED]}
    return [
        _overhead("all 12 points of the figures, CUDA graphs", eight, LIMITS, False, WHICH),
        _overhead("all 12 points of the figures, eager", eight, LIMITS, True, WHICH),
        _overhead("released 1.5B model, CUDA graphs", eight, released, False, WHICH),
        _overhead("released 1.5B model, eager", eight, released, True, ""),
        Comparison(
            "parathinker",
            "latency of 16 paths over one, the worst of 12 points",
            "ratio",
            2.0,
            max(_ratios(LIMITS, 16, False)),
            0.0,
            relation="at most",
            status="derived",
            source=f"{sixteen.source}: '{sixteen.text}'",
            setup="--gpu a100-sxm-80gb --engine vllm:0.7 --strategy parathinker paths=16 path_tok=1024..24576",
            assumed=ASSUMED,
        ),
    ]


def _overhead(which: str, published: Number, limits: dict, eager: bool, off: str) -> Comparison:
    options = " --enforce-eager" if eager else ""
    return Comparison(
        "parathinker",
        f"latency that 8 paths add to that of one, {which}",
        published.unit,
        published.value,
        100.0 * (float(np.mean(_ratios(limits, 8, eager))) - 1.0),
        TOLERANCE,
        status=published.status,
        source=published.source,
        setup=f"--gpu a100-sxm-80gb --engine vllm:0.7{options} --strategy parathinker paths=8 path_tok=1024..24576",
        assumed=ASSUMED,
        known_miss=off,
    )


def _ratios(limits: dict, paths: int, eager: bool) -> list[float]:
    """Latency of `paths` paths over one path, at every limit."""
    return [
        _wall_s(model, limit, paths, eager) / _wall_s(model, limit, 1, eager)
        for model, found in limits.items()
        for limit in found
    ]


@cache
def _wall_s(model: str, limit_tok: int, paths: int, eager: bool) -> float:
    asked = Scenario(
        gpu="a100-sxm-80gb",
        model=model,
        engine="vllm:0.7",
        enforce_eager=eager,
        strategy="parathinker",
        strategy_parameters={"paths": paths, "path_tok": limit_tok, "thinking_tok": limit_tok},
        engine_settings={"max_model_len": limit_tok + 1024},
        repetitions=1,
    )
    return simulate_scenario(asked).flights[0].wall_s
