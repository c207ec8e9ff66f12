"""clipfast inside open_clip_torch 3.3.0: its losses, and the forwards of its towers.

B sequences, L tokens of each, T packed tokens, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from clipfast_kernels import quick_gelu
from torch import Tensor, nn

from clipfast.adapters import patches
from clipfast.adapters.acceleration import Adapter, Adapters, Left
from clipfast.losses import ClipLoss, SigLipLoss
from clipfast.models.hooks import has_user_hooks
from clipfast.models.layouts import BatchedTokens, Layout, text_layout
from clipfast.models.resnet import attention_pool, bottleneck, stem
from clipfast.models.transformer import attend, residual_block, run_blocks
from clipfast.packed_text import (
    PackedText,
    SharedText,
    check_packed,
    check_padded,
    pack_padded,
    pad_packed,
    unshared,
)

_VERSION = "3.3."

_Text = Tensor | PackedText | SharedText


@contextmanager
def fast_losses() -> Iterator[None]:
    """While it is open, open_clip and its trainer make clipfast's ClipLoss and SigLipLoss.

    Losses that were made before keep their class; so do CoCa's and distillation's, which need the
    logits themselves.

    Example::

        from clipfast.adapters.open_clip import fast_losses
        from open_clip_train.main import main

        with fast_losses():
            main(["--model", "ViT-B-32", "--train-data", ...])

    Raises:
        ImportError: open_clip_torch is not installed.
    """
    import open_clip
    import open_clip.factory
    import open_clip.loss

    # Every name under which open_clip 3.3.0 finds them; create_loss looks in its own module.
    places = [
        (module, name, ours)
        for module in (open_clip, open_clip.factory, open_clip.loss)
        for name, ours in (("ClipLoss", ClipLoss), ("SigLipLoss", SigLipLoss))
        if hasattr(module, name)
    ]
    before = [getattr(module, name) for module, name, _ in places]
    try:
        for module, name, ours in places:
            setattr(module, name, ours)
        yield
    finally:
        for (module, name, _), theirs in zip(places, before, strict=True):
            setattr(module, name, theirs)


def adapters() -> Adapters:
    import open_clip
    from open_clip import coca_model, hf_model, modified_resnet, timm_model, transformer

    found: Adapters = {
        open_clip.CLIP: Adapter("packed text", _adapt_clip),
        transformer.TextTransformer: Adapter("packed text, fused attention", _adapt_text),
        transformer.VisionTransformer: Adapter(
            "fused attention, a last block of one token", _adapt_vision_transformer
        ),
        modified_resnet.ModifiedResNet: Adapter("channels-last convolutions", _adapt_resnet),
        modified_resnet.Bottleneck: Adapter("fused BatchNorm", _adapt_bottleneck),
        modified_resnet.AttentionPool2d: Adapter("attention from one query", _adapt_pool),
        transformer.QuickGELU: Adapter("fused", _adapt_quick_gelu),
        timm_model.TimmModel: Left("timm's own modules are not replaced"),
        hf_model.HFTextEncoder: Left(
            "transformers' own modules are not replaced; clipfast's model of the same "
            "configuration packs their text"
        ),
        coca_model.MultimodalTransformer: Left("its captions' decoder needs every token"),
    }
    if not open_clip.__version__.startswith(_VERSION):
        why = f"written for open_clip {_VERSION}x; this is {open_clip.__version__}"
        return {kind: Left(why) for kind in found}
    return found


def _adapt_clip(model: nn.Module) -> str | None:
    reason = _unpackable(model, model.text_pool_type)  # type: ignore[arg-type]
    return reason or _adapt_transformer(model, "encode_text", _encode_text)


def _adapt_text(text: nn.Module) -> str | None:
    reason = _unpackable(text, text.pool_type)  # type: ignore[arg-type]
    return reason or _adapt_transformer(text, "forward", _text_forward)


def _adapt_vision_transformer(visual: nn.Module) -> str | None:
    return _adapt_transformer(visual, "forward", _vision_forward)


def _adapt_resnet(visual: nn.Module) -> None:
    patches.replace(visual, "stem", stem)


def _adapt_bottleneck(block: nn.Module) -> None:
    patches.replace(block, "forward", bottleneck)


def _adapt_pool(pool: nn.Module) -> None:
    patches.replace(pool, "forward", _pool_forward)


def _adapt_quick_gelu(activation: nn.Module) -> None:
    patches.replace(activation, "forward", _quick_gelu)


def _adapt_transformer(tower: Any, method: str, function: Any) -> str | None:
    from open_clip.transformer import ResidualAttentionBlock

    transformer = tower.transformer
    for block in transformer.resblocks:
        if type(block) is not ResidualAttentionBlock:
            return f"its blocks are {type(block).__name__}s"
        if not transformer.batch_first or block.attn.dropout:
            return "its attention has dropout, or the batch second"
    for block in transformer.resblocks:
        patches.replace(block, "forward", _block_forward)
        patches.replace(block.attn, "forward", _attn_forward)
    patches.replace(tower, method, function)
    return None


def _unpackable(text: Any, pool_type: str) -> str | None:
    if getattr(text, "cls_emb", None) is not None:
        return "its class token attends over padding"
    if getattr(text, "use_pad_mask", False):
        return "it masks padding"
    if pool_type == "none":
        return "it pools nothing"
    return None


def _vision_forward(visual: Any, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    if has_user_hooks(*visual.children()):
        out: Tensor | tuple[Tensor, Tensor] = patches.original(visual, "forward")(image)
        return out
    whole = visual.output_tokens or visual.attn_pool is not None or visual.pool_type != "tok"
    layout = BatchedTokens(_heads(visual))
    x = _run(visual, visual._embeds(image), layout, every_token=whole)
    pooled, tokens = visual._pool(x) if whole else (visual.ln_post(x), x)
    if visual.proj is not None:
        pooled = pooled @ visual.proj
    features: Tensor = pooled
    return (features, tokens) if visual.output_tokens else features


def _encode_text(model: Any, text: _Text, normalize: bool = False) -> Tensor:
    if has_user_hooks(model.transformer, model.token_embedding, model.ln_final):
        features: Tensor = patches.original(model, "encode_text")(_padded(text, model))
        return F.normalize(features, dim=-1) if normalize else features
    pooled = _pooled_text(model, text, model.text_pool_type, model.text_eos_id)
    features = _project(model, pooled)
    return F.normalize(features, dim=-1) if normalize else features


def _text_forward(tower: Any, text: _Text) -> Tensor | tuple[Tensor, Tensor]:
    if tower.output_tokens or has_user_hooks(*tower.children()):
        out: Tensor | tuple[Tensor, Tensor]
        out = patches.original(tower, "forward")(_padded(text, tower))
        return out
    return _project(tower, _pooled_text(tower, text, tower.pool_type, tower.eos_id))


def _pooled_text(tower: Any, text: _Text, pool_type: str, eos_id: int) -> Tensor:
    """(B, W), after ln_final. Text is packed where nothing behind the pooled token matters."""
    causal = tower.attn_mask is not None
    by_token = pool_type in ("argmax", "eos")
    if causal and by_token:
        if not isinstance(text, PackedText | SharedText):
            check_padded(text)
            text = pack_padded(text, _ends(text, pool_type, eos_id))
        longest = tower.context_length
        if not torch.compiler.is_compiling():
            longest = check_packed(text, tower.context_length)
        layout = text_layout(text, _heads(tower), longest)
        x = _embed(tower, text.tokens, layout.positions)
        return tower.ln_final(_run(tower, x, layout))
    text = _padded(text, tower)
    positions = torch.arange(text.shape[1], device=text.device).expand_as(text)
    batched = BatchedTokens(_heads(tower), causal, pooled_at=-1 if pool_type == "last" else 0)
    whole = by_token or (causal and pool_type == "first")
    x = _run(tower, _embed(tower, text, positions), batched, every_token=whole)
    if by_token:
        x = x[torch.arange(len(x), device=x.device), _ends(text, pool_type, eos_id)]
    elif whole:
        x = batched.pooled(x)
    return tower.ln_final(x)


def _ends(text: Tensor, pool_type: str, eos_id: int) -> Tensor:
    """(B,) the place of each pooled token."""
    return (text if pool_type == "argmax" else (text == eos_id).int()).argmax(dim=-1)


def _embed(tower: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    dtype = tower.transformer.get_cast_dtype()
    position = F.embedding(positions, tower.positional_embedding)
    return tower.token_embedding(tokens).to(dtype) + position.to(dtype)


def _project(tower: Any, x: Tensor) -> Tensor:
    projection = tower.text_projection
    if projection is None:
        return x
    return projection(x) if isinstance(projection, nn.Linear) else x @ projection


def _padded(text: _Text, tower: Any) -> Tensor:
    plain: Tensor | PackedText = unshared(text)
    return pad_packed(plain, tower.context_length) if isinstance(plain, PackedText) else plain


def _heads(tower: Any) -> int:
    return int(tower.transformer.resblocks[0].attn.num_heads)


def _run(tower: Any, x: Tensor, layout: Layout, *, every_token: bool = False) -> Tensor:
    transformer = tower.transformer
    recompute = transformer.grad_checkpointing and torch.is_grad_enabled()
    return run_blocks(
        transformer.resblocks, x, layout, every_token=every_token, recompute=recompute
    )


def _block_forward(block: Any, x: Tensor, layout: Any = None, *rest: Any, **named: Any) -> Tensor:
    """As the towers above call it, or as open_clip's own code does."""
    if isinstance(layout, Layout):
        return residual_block(block, x, layout, *rest)
    out: Tensor = patches.original(block, "forward")(x, layout, *rest, **named)
    return out


def _attn_forward(attn: Any, x: Tensor, layout: Any, *rest: Any, **named: Any) -> Any:
    if isinstance(layout, Layout):
        return attend(attn, x, layout, *rest)
    return patches.original(attn, "forward")(x, layout, *rest, **named)


def _pool_forward(pool: Any, x: Tensor) -> Tensor:
    return attention_pool(pool, x, pool.num_heads)


def _quick_gelu(_: nn.Module, x: Tensor) -> Tensor:
    return quick_gelu(x)
