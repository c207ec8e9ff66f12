"""CLIP: an image tower, a text tower, and the scale between them.

Parameter names and their order are OpenAI's and open_clip's, so weights and optimizer states go
both ways. B pairs, L context length, T packed tokens, W text width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipfast.models.config import INIT_LOGIT_SCALE
from clipfast.models.hooks import has_user_hooks
from clipfast.models.layouts import PaddedTokens, text_layout
from clipfast.models.locking import (
    Part,
    clip_text_parts,
    graph_only_if_needed,
    lock_groups,
    rest_locked_towers,
    unlock_layer_norms,
)
from clipfast.models.transformer import LayerNorm, Transformer
from clipfast.packed_text import (
    PackedText,
    SharedText,
    check_packed,
    check_padded,
    pack_padded,
    pad_packed,
    unshared,
)


class TwoTowers(nn.Module):
    """What models with any text tower share.

    Args:
        visual: the image tower, (B, 3, S, S) -> (B, embed_dim); has `image_size`.
        embed_dim: width of the shared space.
        output_dict: `forward` returns a dict instead of a tuple.
    """

    context_length: int

    def __init__(self, visual: nn.Module, *, embed_dim: int, output_dict: bool) -> None:
        super().__init__()
        self.output_dict, self.embed_dim = output_dict, embed_dim
        self.visual = visual
        self.image_size = int(visual.image_size)  # type: ignore[arg-type]

    def _add_scale_and_bias(self, scale: float, bias: float | None) -> None:
        """They come last: optimizer states know parameters by their order."""
        self.logit_scale = nn.Parameter(torch.tensor(float(scale)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """(B, 3, S, S) normalised pixels -> (B, embed_dim).

        Raises:
            ValueError: another shape.
        """
        size = self.image_size
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ValueError(
                f"image: expected shape (B, 3, {size}, {size}); got {tuple(image.shape)}"
            )
        with graph_only_if_needed([self.visual], image):
            features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(
        self, text: Tensor | PackedText | SharedText, normalize: bool = False
    ) -> Tensor:
        """PackedText, SharedText, or padded (B, L) ids -> (B, embed_dim).

        Raises:
            ValueError: padded text of another shape, no caption, a caption that is empty or longer
                than the context, or cu_seqlens that do not run from 0 to the number of tokens.
        """
        with graph_only_if_needed(self.text_trunk_parts()):
            x = self.text_trunk(text)
        features = self.text_head(x)
        return F.normalize(features, dim=-1) if normalize else features

    def text_trunk(self, text: Tensor | PackedText | SharedText) -> Tensor:
        """What a locked text tower computes: as `encode_text`, before `text_head`."""
        raise NotImplementedError

    def text_head(self, x: Tensor) -> Tensor:
        """What of the text tower is trained even when it is locked; x, where that is nothing."""
        return x

    def text_trunk_parts(self) -> list[Part]:
        """The parameters, and modules, of `text_trunk`."""
        raise NotImplementedError

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes the image tower but its last groups; see its `lock`."""
        self.visual.lock(unlocked_groups, freeze_bn_stats)  # type: ignore[operator]
        self.train(self.training)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the text tower but its last layers, and its LayerNorms if asked to."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> TwoTowers:
        """As torch's, but for locked towers, which `rest_locked_towers` keeps in evaluation."""
        super().train(mode)
        if mode:
            rest_locked_towers(self)
        return self

    def no_weight_decay(self) -> set[str]:
        """Names of the tensors that timm's optimizers do not decay, beside vectors and biases."""
        names = {"positional_embedding", "visual.positional_embedding", "visual.class_embedding"}
        return names & dict(self.named_parameters()).keys()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Both towers keep their blocks' inputs alone; the backward computes the rest again."""
        raise NotImplementedError

    def forward(
        self, image: Tensor | None = None, text: Tensor | PackedText | None = None
    ) -> tuple[Tensor | None, ...] | dict[str, Tensor | None]:
        """Unit features of both towers, the multiplier exp(logit_scale), and the bias if any."""
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        logit_scale = self.logit_scale.exp()
        found = {
            "image_features": image_features,
            "text_features": text_features,
            "logit_scale": logit_scale,
        }
        if self.logit_bias is not None:
            found["logit_bias"] = self.logit_bias
        return found if self.output_dict else tuple(found.values())


class CLIP(TwoTowers):
    """Contrastive language-image model with OpenAI's text transformer.

    Args:
        visual, embed_dim, output_dict: as `TwoTowers`.
        context_length, vocab_size, width, heads, layers, mlp_ratio, ls_init_value: the text
            transformer's.
        activation: its MLPs'.
        init_logit_scale: the multiplier's logarithm at first.
        init_logit_bias: what SigLIP's loss adds to logits, at first; None for a model without.

    Source: Radford et al. 2021, arXiv 2103.00020, figure 3.
    """

    def __init__(
        self,
        visual: nn.Module,
        *,
        embed_dim: int,
        context_length: int,
        vocab_size: int,
        width: int,
        heads: int,
        layers: int,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        activation: type[nn.Module] = nn.GELU,
        output_dict: bool = False,
        init_logit_scale: float = INIT_LOGIT_SCALE,
        init_logit_bias: float | None = None,
    ) -> None:
        super().__init__(visual, embed_dim=embed_dim, output_dict=output_dict)
        self.context_length, self.vocab_size = context_length, vocab_size
        self.transformer = Transformer(width, layers, heads, mlp_ratio, activation, ls_init_value)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self._add_scale_and_bias(init_logit_scale, init_logit_bias)
        self.transformer.init_as_openai()
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    @property
    def attn_mask(self) -> Tensor:
        """(L, L) float: 0 where a token sees another, −∞ elsewhere. Attention here needs none."""
        unseen = torch.full([self.context_length] * 2, -math.inf, device=self.logit_scale.device)
        return unseen.triu(1)

    def text_trunk(self, text: Tensor | PackedText | SharedText) -> Tensor:
        """PackedText, SharedText, or padded (B, L) ids, which are packed first -> (B, embed_dim).

        Blocks see packed tokens (T, W) or shared ones (U, W), or padded ones (B, L, W) when a hook
        waits for them.
        """
        if not isinstance(text, PackedText | SharedText):
            check_padded(text)
            text = pack_padded(text)
        longest = self.context_length
        if not torch.compiler.is_compiling():
            longest = check_packed(text, self.context_length)
        if has_user_hooks(self.transformer, self.token_embedding, self.ln_final):
            features = self._encode_padded(unshared(text))
        else:
            layout = text_layout(text, self.transformer.heads, longest)
            x = self.transformer(self._embed(text.tokens, layout.positions), layout)
            features = self.ln_final(x)
        return features @ self.text_projection

    def text_trunk_parts(self) -> list[Part]:
        return clip_text_parts(self)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes all but the last layers of: embeddings; each block, the last one with ln_final;
        text_projection.

        Args:
            freeze_layer_norm: False leaves the LayerNorms of frozen layers trainable.
        """
        *blocks, last = self.transformer.blocks()
        groups: list[Sequence[Part]] = [
            [self.token_embedding, self.positional_embedding],
            *([part] for part in blocks),
            [last, self.ln_final],
            [self.text_projection],
        ]
        lock_groups(groups, unlocked_layers)
        if not freeze_layer_norm:
            unlock_layer_norms(self.text_trunk_parts())
        self.train(self.training)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        dtype = self.transformer.get_cast_dtype()
        position = F.embedding(positions, self.positional_embedding)
        return self.token_embedding(tokens).to(dtype) + position.to(dtype)

    def _encode_padded(self, text: PackedText) -> Tensor:
        padded = pad_packed(text, self.context_length)
        positions = torch.arange(self.context_length, device=padded.device).expand_as(padded)
        layout = PaddedTokens(self.transformer.heads, text.cu_seqlens.diff().long() - 1)
        x = self.transformer(self._embed(padded, positions), layout, every_token=True)
        return layout.pooled(self.ln_final(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)  # type: ignore[operator]
        self.transformer.grad_checkpointing = enable


class CustomTextCLIP(TwoTowers):
    """CLIP with any text tower of its own, under the name `text` as in open_clip.

    Args:
        visual, embed_dim, output_dict: as `TwoTowers`.
        text: PackedText or padded (B, L) ids -> (B, embed_dim), as `proj(pooled(text))`; has
            `transformer`, `lock`, `context_length` and `vocab_size`.
        init_logit_scale, init_logit_bias: as `CLIP`.
    """

    def __init__(
        self,
        visual: nn.Module,
        text: nn.Module,
        *,
        embed_dim: int,
        output_dict: bool = False,
        init_logit_scale: float = INIT_LOGIT_SCALE,
        init_logit_bias: float | None = None,
    ) -> None:
        super().__init__(visual, embed_dim=embed_dim, output_dict=output_dict)
        self.text = text
        self.context_length: int = text.context_length  # type: ignore[assignment]
        self.vocab_size = text.vocab_size
        self._add_scale_and_bias(init_logit_scale, init_logit_bias)

    def text_trunk(self, text: Tensor | PackedText | SharedText) -> Tensor:
        return self.text.pooled(unshared(text))  # type: ignore[operator]

    def text_head(self, x: Tensor) -> Tensor:
        return self.text.proj(x)  # type: ignore[operator]

    def text_trunk_parts(self) -> list[Part]:
        return [self.text.transformer]  # type: ignore[list-item]

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the encoder but its last layers; `text.proj` trains on."""
        self.text.lock(unlocked_layers, freeze_layer_norm)  # type: ignore[operator]
        self.train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.visual.set_grad_checkpointing(enable)  # type: ignore[operator]
        self.text.set_grad_checkpointing(enable)  # type: ignore[operator]
