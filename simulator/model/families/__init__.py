"""Readers of config.json by model family: Hugging Face fields in, layers out."""

from simulator.model.families import gpt, hybrid, transformer

# model_type -> function(fields) -> Model with an empty name; everything else is read like Llama.
READERS = {
    **dict.fromkeys(transformer.FAMILIES, transformer.read),
    "llada": transformer.read_llada,
    "gpt2": gpt.read_gpt2,
    "phi": gpt.read_phi,
    "nemotron_h": hybrid.read_nemotron_h,
    "lfm2": hybrid.read_lfm2,
}
