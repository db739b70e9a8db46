"""To Backtrack or Not to Backtrack: what the FLOPs of one long trace pay for in direct solutions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from simulator.flops import call_flop
from simulator.model import Model, load_model
from simulator.scenario import Scenario, simulate_scenario
from validate.published.comparison import Comparison

TITLE = "To Backtrack or Not to Backtrack (arXiv:2504.07052)"
ABOUT = (
    "One long trace that searches against n direct solutions for the same FLOPs. The paper plots accuracy over FLOPs; "
    "the authors' repository has the formula, the model shapes and the token counts that its FLOPs come from."
)
SOURCE = "github:KempnerInstitute/Backtrack, FLOPs formula of analyze_results.py"
TRACE_TOK = 4096  # the longest traces of both tasks
VOCABULARY = 46  # of the CountDown tokenizer


@dataclass(frozen=True)
class Shape:
    """A model of the paper, a small Qwen2 (4 heads, 1 of them for keys and values)."""

    name: str
    hidden: int
    intermediate: int
    layers: int

    def multiply_adds(self, tokens: int) -> float:
        """The authors' count for one generation: products with weights, and one per pair and hidden unit."""
        kv = self.hidden // 4
        weights = 2 * self.hidden**2 + 2 * self.hidden * kv + 3 * self.hidden * self.intermediate
        return self.layers * (weights * tokens + self.hidden * tokens * (tokens + 1) / 2)


SHAPES = (
    Shape("3M", 256, 512, 6),
    Shape("17M", 512, 1024, 8),
    Shape("38M", 512, 2048, 10),
    Shape("144M", 1024, 3072, 12),
)
DIRECT_TOK = {"CountDown": 212, "Sudoku": 332}
HALVED = (
    "the authors count one multiply-add per pair of tokens and hidden unit; attention has two, for the scores and for "
    "the values, and so has the simulator. A long trace therefore costs more and pays for more"
)


def compare() -> list[Comparison]:
    """FLOPs of a direct solution, FLOPs of the long trace, and n of both tasks."""
    found = []
    with TemporaryDirectory() as folder:
        for shape in SHAPES:
            config = _write_config(shape, Path(folder))
            found += _flops(shape, load_model(config))
            if shape.name == "17M":  # the size that both tasks of the paper show
                found += [_pays_for(shape, config, task, tokens) for task, tokens in DIRECT_TOK.items()]
    return found


def _flops(shape: Shape, model: Model) -> list[Comparison]:
    flop = call_flop(model)
    cases = (("direct solution of CountDown", DIRECT_TOK["CountDown"]), ("trace", TRACE_TOK))
    return [
        Comparison(
            "backtrack",
            f"{shape.name}, FLOPs of one {what}, {tokens} tokens",
            "GFLOP",
            2.0 * shape.multiply_adds(tokens) / 1e9,
            flop(1, tokens) / 1e9,
            0.10 if what != "trace" else None,
            status="derived",
            source=SOURCE,
            setup="run.flop(1, tokens) on the model's shape",
            assumed=("input: tokens and model shape, from the repository", "a multiply-add is two FLOPs"),
            reason=HALVED if what == "trace" else "",
        )
        for what, tokens in cases
    ]


def _pays_for(shape: Shape, config: str, task: str, tokens: int) -> Comparison:
    parameters = {"mode": "parallel", "trace_tok": TRACE_TOK, "direct_tok": tokens, "problem_tok": 1}
    flight = simulate_scenario(
        Scenario(gpu="h100-sxm", model=config, strategy="backtrack", strategy_parameters=parameters, repetitions=1)
    ).flights[0]
    return Comparison(
        "backtrack",
        f"{shape.name}, direct solutions that one trace pays for, {task}",
        "calls",
        shape.multiply_adds(TRACE_TOK) / shape.multiply_adds(tokens),
        len(flight.calls),
        None,
        status="derived",
        source=SOURCE,
        setup=f"--strategy backtrack mode=parallel trace_tok={TRACE_TOK} direct_tok={tokens} problem_tok=1",
        assumed=("input: tokens and model shape, from the repository",),
        reason=HALVED,
    )


def _write_config(shape: Shape, folder: Path) -> str:
    path = folder / f"{shape.name}.json"
    path.write_text(
        json.dumps(
            {
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "hidden_size": shape.hidden,
                "intermediate_size": shape.intermediate,
                "num_hidden_layers": shape.layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 1,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 2 * TRACE_TOK,
                "tie_word_embeddings": True,
                "torch_dtype": "bfloat16",
            }
        )
    )
    return str(path)
