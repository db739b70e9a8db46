"""Hugging Face config.json -> `Model`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from simulator.errors import UserError
from simulator.model.architecture import Model
from simulator.model.families import READERS, transformer
from simulator.model.fields import Fields
from simulator.model.quantisation import read_dtype, read_quantisation

# Fields that change what a layer computes and that no reader represents: refused rather than misread.
UNREPRESENTED = {
    "block_configs": "layers of different shapes",
    "index_topk": "attention layers with a sparse indexer",
    "linear_num_value_heads": "gated linear attention layers",
    "mamba_d_state": "state-space layers",
    "moe_latent_size": "experts in a latent space",
    "cross_attention_layers": "cross attention layers",
    "num_kv_shared_layers": "layers that share a KV cache",
}
# Inherited by a nested text_config that does not say.
_INHERITED = ("torch_dtype", "dtype", "quantization_config", "tie_word_embeddings", "model_type", "architectures")


def read_config(path: str | Path, name: str | None = None) -> Model:
    """Read a config.json, or the one in a directory; `name` defaults to what the directory or file is called.

    Raises `UserError` for a missing file, broken JSON, and any field that is missing or makes no sense.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, expected a Hugging Face config.json") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read ({problem}), expected a Hugging Face config.json") from None
    except json.JSONDecodeError as problem:
        raise UserError(f"{path}: line {problem.lineno} is not JSON: {problem.msg}") from None
    except (RecursionError, ValueError) as problem:  # nested too deeply, a number of thousands of digits
        raise UserError(f"{path}: not JSON of a config.json: {problem}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: found {type(raw).__name__}, expected a JSON object of Hugging Face's config.json")
    resolved = path.resolve()
    own_name = resolved.parent.name if path.name == "config.json" else path.stem
    return model_from_fields(Fields(raw, str(path)), name or own_name)


def model_from_fields(fields: Fields, name: str) -> Model:
    """The `Model` that the fields of one config.json describe."""
    notes: list[str] = []
    if "text_config" in fields:
        inherited = {key: fields.values[key] for key in _INHERITED if key in fields}
        if "vision_config" in fields:
            notes.append("only the language model is represented; the vision tower is left out")
        fields = fields.child("text_config").with_defaults(inherited)
    if fields.flag("is_encoder_decoder"):
        raise fields.error("is_encoder_decoder", "found true, expected a decoder-only model")
    for field, meaning in UNREPRESENTED.items():
        if fields.values.get(field):
            raise fields.error(field, f"{meaning} cannot be represented, expected a model without them")
    model_type = fields.text("model_type", default="")
    reader = READERS.get(model_type)
    if reader is None:
        reader = transformer.read
        _check_generates(fields)
        notes.append(f"model_type '{model_type}' is not known: read like Llama with the fields that are there")
    if fields.whole("num_nextn_predict_layers") or fields.flag("use_mtp"):
        notes.append("the extra layers for multi-token prediction are left out")
    dtype = read_dtype(fields)
    model = reader(fields)
    quantisation, experts_only = read_quantisation(fields, model.sparse)
    if quantisation == "int8":
        notes.append("8-bit integer weights are simulated with 8-bit activations (W8A8), which the config may not mean")
    return dataclasses.replace(
        model,
        name=name,
        torch_dtype=dtype,
        quantisation=quantisation,
        quantised_experts_only=experts_only,
        notes=tuple(notes),
    )


def _check_generates(fields: Fields) -> None:
    architectures = fields.optional_list("architectures", str) or []
    writes_text = ("CausalLM", "ConditionalGeneration", "LMHead")
    if architectures and not any(word in name for name in architectures for word in writes_text):
        found = f"found {architectures[0]}, expected a model that writes text (…ForCausalLM)"
        raise fields.error("architectures", found)
