"""clipfast inside Hugging Face transformers: the forwards of CLIPModel's towers.

B sequences, L tokens of each, T packed tokens, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from clipfast_kernels import quick_gelu
from torch import Tensor, nn
from transformers import activations
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.clip import modeling_clip

from clipfast.adapters import patches
from clipfast.adapters.acceleration import Adapter, Adapters
from clipfast.models.hooks import has_user_hooks
from clipfast.models.layouts import BatchedTokens, Layout, PackedTokens
from clipfast.models.transformer import run_blocks
from clipfast.packed_text import PackedText, check_packed, check_padded, pack_padded, pad_packed

_LEGACY_EOS = 2  # in old configurations: the pooled token is the one with the largest id


def adapters() -> Adapters:
    vision = Adapter("fused attention, a last block of one token", _adapt_vision)
    text = Adapter("packed text, a last block of one token", _adapt_text)
    activation = Adapter("fused", _adapt_quick_gelu)
    found: Adapters = {
        modeling_clip.CLIPVisionModel: vision,
        modeling_clip.CLIPTextModel: text,
        activations.QuickGELUActivation: activation,
    }
    # transformers 4 has the towers' code one level further inside.
    for name, adapter in (("CLIPVisionTransformer", vision), ("CLIPTextTransformer", text)):
        if (inner := getattr(modeling_clip, name, None)) is not None:
            outer = {"CLIPVisionTransformer": "CLIPVisionModel"}.get(name, "CLIPTextModel")
            del found[getattr(modeling_clip, outer)]
            found[inner] = adapter
    return found


class PooledOutput(BaseModelOutputWithPooling):
    """A tower's output, whose `last_hidden_state` is computed when it is first asked for."""

    _whole: Callable[[], Any] | None = None

    @classmethod
    def of(cls, pooled: Tensor, whole: Callable[[], Any]) -> PooledOutput:
        """Args: whole: computes the tower as transformers has it."""
        out = cls(pooler_output=pooled)
        object.__setattr__(out, "_whole", whole)
        return out

    def __getattribute__(self, name: str) -> Any:
        if name == "last_hidden_state":
            self._complete()
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        if key == "last_hidden_state" or not isinstance(key, str):
            self._complete()
        return super().__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        self._complete()
        return super().to_tuple()

    def _complete(self) -> None:
        whole, self._whole = self._whole, None
        if whole is not None:
            self["last_hidden_state"] = whole().last_hidden_state
            self.move_to_end("last_hidden_state", last=False)  # the first, as in a tuple


def _adapt_vision(tower: nn.Module) -> str | None:
    return _adapt_encoder(tower, _vision_forward)


def _adapt_text(tower: nn.Module) -> str | None:
    return _adapt_encoder(tower, _text_forward)


def _adapt_quick_gelu(activation: nn.Module) -> None:
    patches.replace(activation, "forward", _quick_gelu)


def _adapt_encoder(tower: Any, function: Any) -> str | None:
    layers = tower.encoder.layers
    if any(layer.self_attn.dropout for layer in layers):
        return "its attention has dropout"
    for layer in layers:
        patches.replace(layer, "forward", _layer_forward)
        patches.replace(layer.self_attn, "forward", _attn_forward)
    patches.replace(tower, "forward", function)
    return None


def _vision_forward(tower: Any, pixel_values: Tensor | None = None, **options: Any) -> Any:
    whole = partial(patches.original(tower, "forward"), pixel_values, **options)
    if pixel_values is None or _asks_for_more(options) or has_user_hooks(*tower.children()):
        return whole()
    x = tower.pre_layrnorm(tower.embeddings(pixel_values))
    x = _run(tower, x, BatchedTokens(_heads(tower)))
    return _output(tower.post_layernorm(x), whole, options)


def _text_forward(
    tower: Any,
    input_ids: Tensor | PackedText | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **options: Any,
) -> Any:
    text, length = input_ids, tower.embeddings.position_embedding.num_embeddings
    if isinstance(input_ids, PackedText):
        input_ids = pad_packed(input_ids, length)
    own = patches.original(tower, "forward")
    whole = partial(own, input_ids, attention_mask, position_ids, **options)
    if text is None or position_ids is not None or _asks_for_more(options):
        return whole()
    if has_user_hooks(*tower.children()):
        return whole()
    if not isinstance(text, PackedText):
        text = text.view(-1, text.shape[-1])
        check_padded(text)
        ends = _ends(tower, text)
        if attention_mask is not None and _hides_text(attention_mask, ends):
            return whole()
        text = pack_padded(text, ends)
    longest = length if torch.compiler.is_compiling() else check_packed(text, length)
    layout = PackedTokens.of(text.cu_seqlens, len(text.tokens), _heads(tower), longest)
    embeddings = tower.embeddings
    x = embeddings.token_embedding(text.tokens) + embeddings.position_embedding(layout.positions)
    return _output(tower.final_layer_norm(_run(tower, x, layout)), whole, options)


def _asks_for_more(options: dict[str, Any]) -> bool:
    """Than the pooled token, or for another image size."""
    more = ("output_hidden_states", "output_attentions", "interpolate_pos_encoding")
    return any(options.get(name) for name in more)


def _ends(tower: Any, text: Tensor) -> Tensor:
    """(B,) the place of each pooled token."""
    eos = tower.eos_token_id
    return (text if eos == _LEGACY_EOS else (text == eos).int()).argmax(dim=-1)


def _hides_text(attention_mask: Tensor, ends: Tensor) -> bool:
    """Whether a token is masked that comes before the pooled one, as padding on the left is."""
    if attention_mask.ndim != 2:
        return True
    places = torch.arange(attention_mask.shape[1], device=ends.device)
    return bool(((attention_mask == 0) & (places <= ends[:, None])).any())


def _output(pooled: Tensor, whole: Callable[..., Any], options: dict[str, Any]) -> Any:
    out = PooledOutput.of(pooled, partial(whole, return_dict=True))
    return out.to_tuple() if options.get("return_dict") is False else out


def _run(tower: Any, x: Tensor, layout: Layout) -> Tensor:
    layers = tower.encoder.layers
    recompute = layers[0].gradient_checkpointing and tower.training and torch.is_grad_enabled()
    return run_blocks(layers, x, layout, recompute=recompute)


def _heads(tower: Any) -> int:
    return int(tower.encoder.layers[0].self_attn.num_heads)


def _layer_forward(layer: Any, x: Tensor, layout: Any = None, *rest: Any, **named: Any) -> Any:
    """As the towers above call it, or as transformers' own code does."""
    if not isinstance(layout, Layout):
        return patches.original(layer, "forward")(x, layout, *rest, **named)
    (pooled,) = rest
    skip = layout.pooled(x) if pooled else x
    x = skip + layer.self_attn(layer.layer_norm1(x), layout, pooled)
    return x + layer.mlp(layer.layer_norm2(x))


def _attn_forward(attn: Any, *given: Any, **named: Any) -> Any:
    if len(given) < 2 or not isinstance(given[1], Layout):
        return patches.original(attn, "forward")(*given, **named)
    x, layout, pooled = given
    k, v = attn.k_proj(x), attn.v_proj(x)
    if pooled:
        return attn.out_proj(layout.attend_pooled(attn.q_proj(layout.pooled(x)), k, v))
    return attn.out_proj(layout.attend(attn.q_proj(x), k, v))


def _quick_gelu(_: nn.Module, x: Tensor) -> Tensor:
    return quick_gelu(x)
