"""dParallel: how much time fewer passes save, and what a pass and a cache cost."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.expected import EXACT, Unmasking
from validate.published.numbers import Number, number

TITLE = "dParallel (arXiv:2509.26488)"
ABOUT = (
    "LLaDA-8B and Dream-7B on four tasks, 256 tokens in 256 passes or in as few as 24. Passes are an input, and every "
    "pass costs the same, so the speed-ups are 256 over the passes, on any GPU. What a cache saves is a prediction."
)
TOLERANCE = 0.10
# Not stated. Of the GPUs tried (A5000, A6000, RTX 4090, A100, H100) its seconds come closest to the published ones; the
# authors' training fits GPUs of 24 GB, as it is one.
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
GEN_TOK, BLOCK_TOK = 256, 32
ASSUMED = (
    "GPU: A5000; not stated, chosen because its seconds come closest to the published ones. Speed-ups from passes do "
    "not depend on it, those of a cache do",
    "host: a launch of eager PyTorch costs 72 us, as fitted on Megatron-LM's runs on A100",
    "prompt lengths, counted with another tokenizer",
)
NO_GPU = "the GPU is not stated, and was chosen by these very seconds"
NO_CACHE_RATIO = (
    "a cached pass is bound by the host and a full one by the GPU, and neither is stated: for LLaDA on GSM8K the error "
    "goes from +24 % to -35 % when an A100 takes the place of the A5000"
)
CACHE_OFF = {
    ("LLaDA-8B-Instruct", "GSM8K-CoT (0-shot)"),
    ("LLaDA-8B-Instruct", "MATH (4-shot)"),
    ("LLaDA-8B-Instruct", "HumanEval (0-shot)"),
    ("Dream-7B-Instruct", "MBPP-Instruct (0-shot)"),
}


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

        def seconds(answer_tok: int, rate: float) -> float:
            return self._flown_s(strategy, (*more.items(), ("answer_tok", answer_tok), ("tokens_per_pass", rate)))

        ratio = self.baseline_s / Unmasking(GEN_TOK, BLOCK_TOK, GEN_TOK / passes).mean(seconds)
        setup = f"{_words(given)} ({passes:g} passes: input), {EXACT}"
        published = self._published(column, "speedup")
        return self._row(strategy, "speed-up", published, ratio, setup, TOLERANCE, kind="arithmetic")

    def cached(self) -> Comparison:
        """Speed-up of a dual cache at one token per pass."""
        given = {"cache": "dual", "tokens_per_pass": 1}
        ratio = self.baseline_s / self._flown_s("fast_dllm", tuple(given.items()))
        published = self._published("dLLM: Dual-Cache", "speedup")
        off = NO_CACHE_RATIO if (self.model, self.task) in CACHE_OFF else ""
        what = "speed-up of a dual cache"
        return self._row("fast_dllm", what, published, ratio, _words(given), TOLERANCE, off=off)

    def seconds(self) -> Comparison:
        """Seconds of the baseline."""
        published = self._published("dLLM: baseline", "latency")
        return self._row("llada", "baseline", published, self.baseline_s, "steps=256", None, reason=NO_GPU)

    def _published(self, column: str, metric: str) -> Number:
        config = f"{self.task}; gen_length {GEN_TOK}; block {BLOCK_TOK}"
        return number(strategy=column, model=self.model, config=config, metric=metric)

    def _flown_s(self, strategy: str, given: tuple) -> float:
        return _flown_s(strategy, MODELS[self.model], PROMPTS[self.model, self.task], given)

    def _row(
        self, strategy: str, what: str, published: Number, simulated: float, setup: str, tolerance: float | None,
        kind: str = "prediction", reason: str = "", off: str = "",
    ) -> Comparison:  # fmt: skip
        return Comparison(
            strategy,
            f"{what}, {self.model.removesuffix('-Instruct')}, {self.task}" + f" ({strategy})" * (what == "speed-up"),
            "ratio" if published.unit == "x" else published.unit, published.value, simulated, tolerance,
            status=published.status,
            source="arXiv:2509.26488, Tables 1 and 2",
            setup=f"gen_tok={GEN_TOK} block_tok={BLOCK_TOK} problem_tok={PROMPTS[self.model, self.task]}, {setup}",
            assumed=ASSUMED,
            reason=reason,
            known_miss=off,
            kind=kind,
        )  # fmt: skip


@cache
def _flown_s(strategy: str, model: str, prompt_tok: int, given: tuple) -> float:
    """Wall time of a flight in which nothing is drawn."""
    parameters = {"gen_tok": GEN_TOK, "block_tok": BLOCK_TOK, "problem_tok": prompt_tok, **dict(given)}
    asked = Scenario(
        gpu=GPU,
        model=model,
        engine=ENGINE,
        strategy=strategy,
        strategy_parameters=parameters,
        repetitions=1,
    )
    return simulate_scenario(asked).flights[0].wall_s


def _words(given: dict[str, object]) -> str:
    return " ".join(f"{name}={value}" for name, value in given.items())
