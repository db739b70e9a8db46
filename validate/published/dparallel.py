"""dParallel: how much time fewer passes save, and what a pass and a cache cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from statistics import mean

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number

TITLE = "dParallel (arXiv:2509.26488)"
ABOUT = (
    "LLaDA-8B and Dream-7B on four tasks, 256 tokens in 256 passes or in as few as 24. Passes are an input; what is "
    "tested is how time follows them. The GPU is not stated, so only ratios are asserted."
)
TOLERANCE = 0.10
# Not stated. The authors' training fits GPUs of 24 GB, and long prompts run at 80 TFLOP/s: an A5000 can do both.
GPU = "a5000"
ENGINE = "transformers"
MODELS = {"LLaDA-8B-Instruct": "GSAI-ML/LLaDA-8B-Instruct", "Dream-7B-Instruct": "Dream-org/Dream-v0-Instruct-7B"}
# Prompts with chat template, counted on the public task definitions with a tokenizer of 100k words.
PROMPTS = {
    ("LLaDA-8B-Instruct", "GSM8K-CoT (0-shot)"): 100,
    ("LLaDA-8B-Instruct", "MATH (4-shot)"): 700,
    ("LLaDA-8B-Instruct", "HumanEval (0-shot)"): 165,
    ("LLaDA-8B-Instruct", "MBPP (3-shot)"): 640,
    ("Dream-7B-Instruct", "GSM8K-CoT (0-shot)"): 100,
    ("Dream-7B-Instruct", "MATH (0-shot)"): 105,
    ("Dream-7B-Instruct", "HumanEval-Instruct (0-shot)"): 215,
    ("Dream-7B-Instruct", "MBPP-Instruct (0-shot)"): 145,
}
GEN_TOK = 256
REPETITIONS = 40
ASSUMED = (
    "GPU: A5000; not stated",
    "host: a launch of eager PyTorch costs 72 us, as fitted on Megatron-LM's runs on A100",
    "prompt lengths",
)
NO_GPU = "the GPU is not stated: in seconds nothing can be asserted"
NO_CACHE_RATIO = "a cached pass is bound by the host, a full one by the GPU, and neither is stated"


def compare() -> list[Comparison]:
    """Per model and task: time saved by few passes, then what a cache saves, and seconds of the baseline."""
    found = []
    for model, task in PROMPTS:
        setting = Setting(model, task)
        found += [
            setting.saved("dLLM: dParallel", "dparallel", {}),
            setting.saved("dLLM: Conf-threshold", "fast_dllm", {"cache": "none"}),
            setting.cached(),
            setting.seconds(),
        ]
    return found


@dataclass(frozen=True)
class Setting:
    """A model on a task."""

    model: str
    task: str

    @property
    def baseline_s(self) -> float:
        return self._flown_s("llada", ())

    def saved(self, column: str, strategy: str, more: dict[str, str]) -> Comparison:
        """Speed-up over one token per pass; the number of passes is an input."""
        passes = self._published(column, "denoise steps (NFE)").value
        given = {**more, "tokens_per_pass": round(GEN_TOK / passes, 3)}
        ratio = self.baseline_s / self._flown_s(strategy, tuple(given.items()), REPETITIONS)
        setup = f"{_words(given)} ({passes:g} passes: input)"
        return self._row(strategy, "speed-up", self._published(column, "speedup"), ratio, setup, TOLERANCE)

    def cached(self) -> Comparison:
        """Speed-up of a dual cache at one token per pass."""
        given = {"cache": "dual", "tokens_per_pass": 1}
        ratio = self.baseline_s / self._flown_s("fast_dllm", tuple(given.items()))
        published = self._published("dLLM: Dual-Cache", "speedup")
        return self._row("fast_dllm", "speed-up of a dual cache", published, ratio, _words(given), None, NO_CACHE_RATIO)

    def seconds(self) -> Comparison:
        """Seconds of the baseline."""
        published = self._published("dLLM: baseline", "latency")
        return self._row("llada", "baseline", published, self.baseline_s, "steps=256", None, NO_GPU)

    def _published(self, column: str, metric: str) -> Number:
        config = f"{self.task}; gen_length {GEN_TOK}; block 32"
        return number(strategy=column, model=self.model, config=config, metric=metric)

    def _flown_s(self, strategy: str, given: tuple, repetitions: int = 1) -> float:
        return _mean_s(strategy, MODELS[self.model], PROMPTS[self.model, self.task], given, repetitions)

    def _row(
        self, strategy: str, what: str, published: Number, simulated: float, setup: str, tolerance: float | None,
        reason: str = "",
    ) -> Comparison:  # fmt: skip
        return Comparison(
            strategy,
            f"{what}, {self.model.removesuffix('-Instruct')}, {self.task}" + f" ({strategy})" * (what == "speed-up"),
            "ratio" if published.unit == "x" else published.unit, published.value, simulated, tolerance,
            status=published.status,
            source="arXiv:2509.26488, Tables 1 and 2",
            setup=f"gen_tok={GEN_TOK} block_tok=32 problem_tok={PROMPTS[self.model, self.task]}, {setup}",
            assumed=ASSUMED,
            reason=reason,
        )  # fmt: skip


@cache
def _mean_s(strategy: str, model: str, prompt_tok: int, given: tuple, repetitions: int) -> float:
    """Mean wall time over the drawn passes."""
    parameters = {"gen_tok": GEN_TOK, "block_tok": 32, "problem_tok": prompt_tok, **dict(given)}
    asked = Scenario(
        gpu=GPU,
        model=model,
        engine=ENGINE,
        strategy=strategy,
        strategy_parameters=parameters,
        repetitions=repetitions,
    )
    return mean(flight.wall_s for flight in simulate_scenario(asked).flights)


def _words(given: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in given.items())
