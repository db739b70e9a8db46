"""A KV cache that keys and values are written into in place, as serving engines keep it.

Of the two caches of Hugging Face's library the default one copies everything it holds at every step (`torch.cat`), and
the static one attends to its whole length at every step. Both hide what a calibration is after: what a token of context
costs. This one has room for the longest sequence from the start and hands out what is filled so far, without a copy.
"""

from __future__ import annotations

from typing import Any

_FULL = "full_attention"


def new_cache(model: Any, batch: int, length_tok: int) -> tuple[Any, str]:
    """(an empty cache for `batch` sequences of up to `length_tok` tokens, "in place" or "by concatenation").

    Models with windows, recurrent state or caches of their own get the library's default for them.
    """
    from transformers import DynamicCache

    config = model.config.get_text_config(decoder=True)
    if not _plain(config):
        return DynamicCache(config=config), "by concatenation"
    from transformers.cache_utils import Cache

    layer = _layer_class()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = (batch, heads, length_tok, size)
    return Cache(layers=[layer(shape, model.dtype, model.device) for _ in range(config.num_hidden_layers)]), "in place"


def _plain(config: Any) -> bool:
    """Whether every layer attends to all tokens before, with keys and values of one shape."""
    kinds = set(getattr(config, "layer_types", None) or [_FULL])
    windowed = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    other = any(hasattr(config, name) for name in ("kv_lora_rank", "ssm_cfg", "mamba_d_state", "state_size"))
    return kinds == {_FULL} and not windowed and not other


def _layer_class() -> type:
    """The class of one layer's cache; made on demand, as its base is only known where the library is installed."""
    import torch
    from transformers.cache_utils import DynamicLayer

    class InPlaceLayer(DynamicLayer):
        """Keys and values of one layer; `keys` and `values` are what is filled so far.

        The room for them is taken and written to at the start, as engines do: else the first prompt would pay for
        getting the memory from the system.
        """

        def __init__(self, shape: tuple[int, ...], dtype: Any, device: Any) -> None:
            super().__init__()
            self._filled = 0
            self._room = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)]
            self.keys, self.values = (room[:, :, :0] for room in self._room)
            self.is_initialized, self.dtype, self.device = True, dtype, device

        def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            end = self._filled + key_states.shape[-2]
            for room, states in zip(self._room, (key_states, value_states)):
                room[:, :, self._filled : end] = states
            self._filled = end
            self.keys, self.values = (room[:, :, :end] for room in self._room)
            return self.keys, self.values

    return InPlaceLayer
