"""Fast-dLLM: what block caches and parallel decoding make of LLaDA's throughput."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison
from validate.published.numbers import Number, number

TITLE = "Fast-dLLM (arXiv:2505.22618)"
ABOUT = (
    "Throughput of LLaDA-8B with block caches and parallel decoding on A100: four tasks, two lengths, and ablations on "
    "GSM8K. Ratios are held against ratios: tokens of an answer are not published and come from the baseline's cell."
)
TOLERANCE = 0.20
GPU, MODEL = "a100-sxm-80gb", "GSAI-ML/LLaDA-8B-Instruct"
ENGINE = "transformers"
ABLATIONS = Path(__file__).with_name("fast_dllm_ablations.csv")
TABLE_1 = (
    "dLLM: baseline (steps=gen_length)",
    "dLLM: +KV cache",
    "dLLM: +parallel thr 0.9",
    "dLLM: +cache+parallel (Fast-dLLM)",
)
SHOT_TOK, QUESTION_TOK = 170, 75
# Counted on the public task definitions of lm-eval-harness with a tokenizer of 100k words: LLaDA's own is not at hand.
PROMPTS = {"GSM8K 5-shot": 5 * SHOT_TOK + QUESTION_TOK, "MATH 4-shot": 700, "HumanEval 0-shot": 165, "MBPP 3-shot": 640}
GSM8K, HUMAN_EVAL = "GSM8K 5-shot", "HumanEval 0-shot"
BLOCK_TOK = 32
PER_STEP, PER_STEP_CACHED = 3.25, 3.01  # tokens of 256 per step on GSM8K, Figure 1b: parallel, cache and parallel
ANSWER_TOK = 186  # on GSM8K: 266 s at 0.7 tok/s, Figure 1c
REPETITIONS = 20
ASSUMED = (
    "A100: SXM with 80 GB; the form factor is not stated",
    "host: a launch of eager PyTorch costs 72 us, as fitted on Megatron-LM's runs on A100; at 40 us caches would save "
    "up to 42 % more",
    "prompts: " + ", ".join(f"{task} {tokens} tokens" for task, tokens in PROMPTS.items()),
)
ANSWER_INPUT = "input: it says how many tokens an answer has, which is not published"
PASSES_INPUT = "input: it says how many passes parallel decoding takes, which is published for GSM8K only"
CONTRADICTED = "Figure 1b has 3.25 tokens per step here, which at the baseline's time per pass makes 21.8 tok/s"
TOO_FAST = "a quarter too fast throughout: the authors' model is not fused, and samples in 64 bit"


def compare() -> list[Comparison]:
    """Table 1, cell by cell, then the ablations and the seconds per sample."""
    found = []
    for task in PROMPTS:
        for gen_tok in (256, 512):
            found += _table_1(Setting(task, PROMPTS[task], gen_tok))
    return [*found, *_ablations()]


@dataclass(frozen=True)
class Setting:
    """A prompt and a length to generate."""

    task: str
    prompt_tok: int
    gen_tok: int

    @property
    def baseline_s(self) -> float:
        """Seconds of one full pass per token."""
        parameters = {"gen_tok": self.gen_tok, "steps": self.gen_tok}
        return _flown_s("llada", self.prompt_tok, tuple(parameters.items()))

    def fast_s(self, kind: str, tokens_per_pass: float, answer_tok: int) -> float:
        """Seconds of Fast-dLLM with a cache, in the mean over the drawn passes."""
        parameters = {
            "gen_tok": self.gen_tok, "block_tok": BLOCK_TOK, "cache": kind, "answer_tok": answer_tok,
            "tokens_per_pass": round(tokens_per_pass, 4),
        }  # fmt: skip
        return _flown_s("fast_dllm", self.prompt_tok, tuple(parameters.items()))


@cache
def _flown_s(strategy: str, prompt_tok: int, parameters: tuple) -> float:
    asked = Scenario(
        gpu=GPU,
        model=MODEL,
        engine=ENGINE,
        strategy=strategy,
        strategy_parameters={"problem_tok": prompt_tok, **dict(parameters)},
        repetitions=1 if strategy == "llada" or dict(parameters)["tokens_per_pass"] == 1 else REPETITIONS,
    )
    return mean(flight.wall_s for flight in simulate_scenario(asked).flights)


# -- Table 1 -----------------------------------------------------------------------------------------------------


def _table_1(setting: Setting) -> list[Comparison]:
    """The four cells of one task and length."""
    baseline, cached, parallel, both = (_cell(setting, column) for column in TABLE_1)
    gsm8k, answer_tok = setting.task == GSM8K, _answer_tok(setting)

    def tok_per_s(seconds: float) -> float:
        return baseline.value * setting.baseline_s / seconds

    alone_s = setting.fast_s("none", _tokens_per_pass(setting.task, cached=False), answer_tok)
    both_s = setting.fast_s("prefix", _tokens_per_pass(setting.task, cached=True), answer_tok)
    given = f"answers of {answer_tok} tokens"
    if gsm8k:
        first = _row(setting, baseline, ANSWER_TOK / setting.baseline_s, f"{given} (input, Figure 1c)")
    else:
        first = _row(setting, baseline, None, "", ANSWER_INPUT)
    if gsm8k or setting.gen_tok == 512:
        reason = CONTRADICTED if gsm8k and setting.gen_tok == 256 else ""
        alone = _row(setting, parallel, tok_per_s(alone_s), f"{given}, {_rate(setting.task, False)}", reason)
    else:
        alone = _row(setting, parallel, None, "", PASSES_INPUT)
    cached_s = setting.fast_s("prefix", 1.0, setting.gen_tok)
    return [
        first,
        _row(setting, cached, tok_per_s(cached_s), "cache=prefix, tokens_per_pass=1"),
        alone,
        _row(setting, both, tok_per_s(both_s), f"cache=prefix, {given}, {_rate(setting.task, True)}"),
    ]


def _cell(setting: Setting, column: str) -> Number:
    return number(strategy=column, config=f"{setting.task}; gen_length {setting.gen_tok}; block_length {BLOCK_TOK}")


def _answer_tok(setting: Setting) -> int:
    """Tokens of an answer: on GSM8K from Figure 1c, elsewhere what the baseline's throughput makes of its time.

    HumanEval's throughput counts the prompt as well (released code; issue 15 of the authors' repository).
    """
    if setting.task == GSM8K:
        return ANSWER_TOK
    counted = _cell(setting, TABLE_1[0]).value * setting.baseline_s
    return min(setting.gen_tok, round(counted - setting.prompt_tok * (setting.task == HUMAN_EVAL)))


def _tokens_per_pass(task: str, cached: bool) -> float:
    """Tokens that a pass unmasks while there is text: from the passes of 256 tokens, without those over padding.

    GSM8K: published. Elsewhere the cell of parallel decoding at 256 says it, since without a cache every pass costs the
    same; with one, passes become more by as much as on GSM8K.
    """
    setting = Setting(task, PROMPTS[task], 256)
    answer_tok = _answer_tok(setting)
    padding = 256 // BLOCK_TOK - math.ceil(answer_tok / BLOCK_TOK)
    if task == GSM8K:
        return answer_tok / (256 / (PER_STEP_CACHED if cached else PER_STEP) - padding * (2 if cached else 1))
    passes = 256 * _cell(setting, TABLE_1[0]).value / _cell(setting, TABLE_1[2]).value
    return answer_tok / (passes - padding) * (PER_STEP_CACHED / PER_STEP if cached else 1.0)


def _rate(task: str, cached: bool) -> str:
    source = "Figure 1b" if task == GSM8K else "the cell of parallel decoding at 256"
    return f"tokens_per_pass={_tokens_per_pass(task, cached):.2f} (input, {source})"


def _row(setting: Setting, published: Number, simulated: float | None, setup: str, reason: str = "") -> Comparison:
    name = published.strategy.removeprefix("dLLM: ").partition(" (")[0]
    baseline = name == "baseline"
    lengths = f"gen_tok={setting.gen_tok} problem_tok={setting.prompt_tok}"
    return Comparison(
        "llada" if baseline else "fast_dllm",
        f"{name}, {setting.task}, {setting.gen_tok} tokens",
        "tok/s", published.value, simulated, None if reason else TOLERANCE,
        status=published.status,
        source="arXiv:2505.22618, Table 1",
        setup=f"{lengths}, {setup}" if simulated else "",
        assumed=ASSUMED if baseline else ("throughput as a ratio to the published baseline", *ASSUMED),
        reason=reason,
    )  # fmt: skip


# -- ablations ---------------------------------------------------------------------------------------------------


def _ablations() -> list[Comparison]:
    """Speed-ups on GSM8K by shots, length and cache, and seconds per sample, all from one number of tokens per step."""
    with open(ABLATIONS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    baselines = {(row["shots"], row["gen_tok"]): row for row in rows if row["cell"] == "baseline"}
    found = []
    for row in rows:
        shots, gen_tok, kind = int(row["shots"]), int(row["gen_tok"]), row["cell"].replace("parallel", "none")
        setting = Setting(f"GSM8K {shots}-shot", shots * SHOT_TOK + QUESTION_TOK, gen_tok)
        rate = _tokens_per_pass(GSM8K, cached=kind != "none")
        seconds = setting.baseline_s if kind == "baseline" else setting.fast_s(kind, rate, ANSWER_TOK)
        if row["s_per_sample"]:
            found.append(_sample(setting, row, seconds))
        if kind != "baseline":
            found.append(_speedup(setting, row, baselines[row["shots"], row["gen_tok"]], setting.baseline_s / seconds))
    return found


def _sample(setting: Setting, row: dict[str, str], seconds: float) -> Comparison:
    return Comparison(
        "llada" if row["cell"] == "baseline" else "fast_dllm",
        f"seconds per sample, {_ablation(setting, row)}", "s", float(row["s_per_sample"]), seconds, None,
        source=f"arXiv:2505.22618, {row['source']}", setup=_ablation_setup(setting, row), assumed=ASSUMED[:2],
        reason=TOO_FAST,
    )  # fmt: skip


def _speedup(setting: Setting, row: dict[str, str], baseline: dict[str, str], simulated: float) -> Comparison:
    """Of seconds where they are published; else of tokens per second, in which answers may differ in length."""
    if row["s_per_sample"]:
        published = float(baseline["s_per_sample"]) / float(row["s_per_sample"])
    else:
        published = float(row["tok_per_s"]) / float(baseline["tok_per_s"])
    return Comparison(
        "fast_dllm", f"speed-up, {_ablation(setting, row)}", "ratio", published, simulated,
        TOLERANCE, status="derived", source=f"arXiv:2505.22618, {row['source']}",
        setup=_ablation_setup(setting, row), assumed=ASSUMED[:2],
    )  # fmt: skip


def _ablation(setting: Setting, row: dict[str, str]) -> str:
    return f"{row['cell']}, {setting.task}, {setting.gen_tok} tokens"


def _ablation_setup(setting: Setting, row: dict[str, str]) -> str:
    lengths = f"gen_tok={setting.gen_tok} problem_tok={setting.prompt_tok}"
    if row["cell"] == "baseline":
        return f"{lengths}, the baseline"
    rate = _rate(GSM8K, cached=row["cell"] != "parallel")
    return f"{lengths}, answers of {ANSWER_TOK} tokens (input, Figure 1c), {rate}"
