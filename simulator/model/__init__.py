"""What an LLM is: architecture facts read from a Hugging Face config.json."""

from simulator.model.architecture import Model
from simulator.model.huggingface import read_config
from simulator.model.layers import (
    Attention,
    DenseFfn,
    LatentAttention,
    LayerGroup,
    Mamba2,
    MoeFfn,
    Projection,
    ShortConvolution,
)
from simulator.model.registry import ModelSummary, default_ladder, list_models, load_model

__all__ = [
    "Attention",
    "DenseFfn",
    "LatentAttention",
    "LayerGroup",
    "Mamba2",
    "Model",
    "ModelSummary",
    "MoeFfn",
    "Projection",
    "ShortConvolution",
    "default_ladder",
    "list_models",
    "load_model",
    "read_config",
]
