"""Files of prompts, as load generators read them: ShareGPT, the custom data sets of vLLM, the data sets of GuideLLM.

There is no tokenizer here. Where a file has only text, tokens are counted as characters / 4, rounded up: right to a
fifth or so for English, far too few for Chinese or Japanese. Every reader says so in `assumptions`.
"""

from __future__ import annotations

import msgspec
import numpy as np

from simulator.workload.lengths import MAX_TOK
from simulator.workload.trace_rows import Rows
from simulator.workload.trace_text import TraceText, json_tokens, read_json_lines, read_table, shown

CHARACTERS_PER_TOK = 4
COUNTED = "tokens of texts are counted as characters / 4, rounded up, because there is no tokenizer here"

# `vllm bench` drops conversations outside these limits (is_valid_sequence in vllm/benchmarks/datasets.py).
SHAREGPT_MIN_TOK, SHAREGPT_MAX_PROMPT_TOK, SHAREGPT_MAX_TOTAL_TOK = 4, 1024, 2048

PROMPT_TOK = "prompt_tokens_count"  # GuideLLM
OUTPUT_TOK = ("output_tokens", "output_tokens_count")  # vLLM, GuideLLM


def count_tokens(text: str) -> int:
    """Tokens of a text by the rule above, at least 1."""
    return min(max(1, -(-len(text) // CHARACTERS_PER_TOK)), MAX_TOK)


def read_sharegpt(source: TraceText) -> Rows:
    """ShareGPT JSON as vLLM reads it: the first turn of a conversation is the prompt, the second the answer.

    Conversations of one turn and those that `vllm bench` prunes are left out; how many is said in `assumptions`.
    Rows of complaints are numbers of conversations.
    """
    try:
        entries = msgspec.json.decode(source.text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise source.error(f"bad JSON ({error})", "a JSON list of conversations") from error
    if not isinstance(entries, list) or not entries:
        raise source.error(shown(entries), "a JSON list of conversations")
    pairs = [_first_exchange(source, row, entry) for row, entry in enumerate(entries, 1)]
    long_enough = np.array([pair for pair in pairs if pair is not None], dtype=np.int64).reshape(-1, 2)
    prompt_tok, output_tok = long_enough.T
    kept = (np.minimum(prompt_tok, output_tok) >= SHAREGPT_MIN_TOK) & (prompt_tok <= SHAREGPT_MAX_PROMPT_TOK)
    kept &= prompt_tok + output_tok <= SHAREGPT_MAX_TOTAL_TOK
    if not kept.any():
        raise source.error(f"{len(entries):,} conversations, none usable", "two turns and lengths that vLLM keeps")
    dropped = (
        f"left out as `vllm bench` does: {len(pairs) - len(long_enough):,} conversations of one turn, "
        f"{int((~kept).sum()):,} with a text under 4, a prompt over 1,024 or a total over 2,048 tokens"
    )
    order = "requests are in the order of the file; `vllm bench` shuffles them"
    return Rows(prompt_tok[kept], output_tok[kept], assumptions=(COUNTED, dropped, order))


def _first_exchange(source: TraceText, row: int, entry: object) -> tuple[int, int] | None:
    """(prompt tokens, answer tokens) of a conversation; None when it has fewer than two turns."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    if not isinstance(turns, list):
        raise source.error(shown(entry), "an object with a list 'conversations'", row)
    if len(turns) < 2:
        return None
    texts = [turn.get("value") if isinstance(turn, dict) else None for turn in turns[:2]]
    if not all(isinstance(text, str) for text in texts):
        raise source.error(shown(turns[:2]), "turns with a text 'value'", row, "conversations")
    return count_tokens(texts[0]), count_tokens(texts[1])


def read_prompts_jsonl(source: TraceText) -> Rows:
    """JSONL of {"prompt", "output_tokens"} (vLLM) or {"prompt", "prompt_tokens_count", "output_tokens_count"}.

    Which fields there are is what the first line has; every other line needs the same.
    """
    entries = read_json_lines(source)
    output_field = next((field for field in OUTPUT_TOK if field in entries[0]), None)
    counted = PROMPT_TOK not in entries[0]
    prompts, outputs = [], []
    for row, entry in enumerate(entries, 1):
        if not counted:
            prompts.append(json_tokens(source, row, entry, PROMPT_TOK))
        else:
            text = entry.get("prompt")
            if not isinstance(text, str):
                raise source.error(shown(text), "a text", row, "prompt")
            prompts.append(count_tokens(text))
        if output_field:
            outputs.append(json_tokens(source, row, entry, output_field))
    return Rows(
        prompt_tok=np.array(prompts, dtype=np.int64),
        output_tok=np.array(outputs, dtype=np.int64) if output_field else None,
        assumptions=(COUNTED,) if counted else (),
    )


def read_prompts_csv(source: TraceText) -> Rows:
    """CSV with the columns of GuideLLM: prompt, prompt_tokens_count, output_tokens_count (one of the first two)."""
    table = read_table(source)
    counted = PROMPT_TOK not in table.columns
    if counted:
        table.require("prompt")
        prompt_tok = np.array([count_tokens(text) for text in table.columns["prompt"]], dtype=np.int64)
    else:
        prompt_tok = table.tokens(PROMPT_TOK)
    output_field = next((field for field in OUTPUT_TOK if field in table.columns), None)
    return Rows(
        prompt_tok=prompt_tok,
        output_tok=table.tokens(output_field) if output_field else None,
        assumptions=(COUNTED,) if counted else (),
    )
