"""Both towers' forward on torch's meta device: shapes and dtypes flow, nothing is computed.

What flows is the trainer's own code, down to the attention operator, of which a GPU's kernels are
assumed: q, k, v, the output and the log-sum-exps are kept for the backward. Captions have one
length, as nothing here has values.

B pairs, L tokens of a sequence, T tokens of all, W width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from clipfast_kernels.ops.attention.operator import Attention
from torch import Tensor

from clipfast.errors import UserError
from clipfast.models.clip import CLIP
from clipfast.models.config import HFTextConfig, ModelConfig, plain_name
from clipfast.models.factory import build_model, read_config
from clipfast.models.precision import convert_weights
from clipfast.models.vit import VisionTransformer

_META = torch.device("meta")
_KERNELS = "cuda"  # any of those behind the operator: they keep the same


class OnPaper(NamedTuple):
    """What a transformer asks of its layout (`clipfast.models.layouts`), of tensors without values.

    Attributes:
        batch: B.
        length: L, of each sequence.
        heads: H.
        causal: token i sees the tokens 0 to i, and the last is pooled; else the first is. Padded
            ones are computed in full and masked, as open_clip does.
        packed: tokens are (T, W), with the bounds that captions of any lengths have; else
            (B, L, W).
    """

    batch: int
    length: int
    heads: int
    causal: bool
    packed: bool

    def attend(self, qkv: Tensor) -> Tensor:
        return self._call([self._heads(qkv, 3)], self.length, self.causal and self.packed).view(
            *qkv.shape[:-1], -1
        )

    def attend_pooled(self, q_BW: Tensor, kv: Tensor) -> Tensor:
        return self._call([self._heads(q_BW, 1)[:, 0], self._heads(kv, 2)], 1, False).flatten(-2)

    def pooled(self, x: Tensor) -> Tensor:
        if not self.packed:
            return x[:, self.length - 1 if self.causal else 0]
        return x.index_select(0, torch.empty(self.batch, dtype=torch.int64, device=x.device))

    def _heads(self, x: Tensor, parts: int) -> Tensor:
        """(T, parts, H, D), a view."""
        return x.unflatten(-1, (parts, self.heads, -1)).flatten(0, -4)

    def _call(self, packs: Sequence[Tensor], queries: int, causal: bool) -> Tensor:
        bounds = None
        if self.packed:
            bounds = torch.empty(self.batch + 1, dtype=torch.int32, device=_META)
        scale = packs[0].shape[-1] ** -0.5
        where = bounds, bounds, self.batch, queries, self.length, causal, scale, _KERNELS
        out: Tensor = Attention.apply(where, *packs)
        return out


class PlannedModel:
    """A model without weights.

    Args:
        name: as `--model` of training.
        kept: open_clip's precision of the parameters and of what is computed: "fp32", "bf16",
            "pure_bf16", …; autocast is to be told apart by the caller.
        context_length: in place of the configuration's.

    Attributes:
        model: on the meta device, in training.

    Raises:
        UserError: no such model, or a text tower that needs values to be followed.
    """

    def __init__(self, name: str, kept: str = "fp32", context_length: int | None = None) -> None:
        self.name = plain_name(name)
        self.config = planned_config(name, context_length)
        with _META:
            model = build_model(self.config)
        assert isinstance(model, CLIP)
        self.model: CLIP = convert_weights(model, kept)
        self.model.train()
        self.kept = kept

    @property
    def visual(self) -> Any:
        return self.model.visual

    def image_features(self, batch: int, *, every_token: bool = False) -> Tensor:
        """(B, D).

        Args:
            every_token: the last block computes all of them, as open_clip's does.
        """
        side = self.model.image_size
        images = torch.empty(batch, 3, side, side, device=_META, dtype=self._input_dtype())
        visual = self.visual
        if not isinstance(visual, VisionTransformer):
            features: Tensor = visual(images)
            return features
        x = visual.embed(images)
        layout = OnPaper(batch, x.shape[1], visual.transformer.heads, causal=False, packed=False)
        x = visual.transformer(x, layout, every_token=every_token)
        x = layout.pooled(visual.ln_post(x)) if every_token else visual.ln_post(x)
        return x @ visual.proj

    def text_features(self, batch: int, tokens: int, *, padded: bool = False) -> Tensor:
        """(B, D).

        Args:
            tokens: of each caption.
            padded: to the context length, and every token computed in every block, as open_clip
                does.
        """
        model = self.model
        length = model.context_length if padded else tokens
        places = (batch, length) if padded else (batch * length,)
        ids = torch.empty(places, dtype=torch.int64, device=_META)
        layout = OnPaper(batch, length, model.transformer.heads, causal=True, packed=not padded)
        x = model._embed(ids, ids)
        x = model.ln_final(model.transformer(x, layout, every_token=padded))
        return (layout.pooled(x) if padded else x) @ model.text_projection

    def _input_dtype(self) -> torch.dtype:
        halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return halves.get(self.kept.removeprefix("pure_"), torch.float32)


def planned_config(name: str, context_length: int | None = None) -> ModelConfig:
    """Raises:
    UserError: no such model, or a text tower that needs values to be followed.
    """
    config = read_config(name)
    if isinstance(config.text, HFTextConfig):
        raise UserError(
            f"--model {name}: expected CLIP's own text tower; got {config.text.hf_model_name}, "
            "whose memory and arithmetic only a run can tell"
        )
    if context_length is None:
        return config
    return replace(config, text=replace(config.text, context_length=context_length))
