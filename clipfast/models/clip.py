"""CLIP: an image tower, the text transformer, and the scale between them.

Parameter names and their order are OpenAI's and open_clip's, so weights and optimizer states go
both ways. B pairs, L context length, T packed tokens, W text width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipfast.models.layouts import PackedTokens
from clipfast.models.transformer import Transformer
from clipfast.packed_text import PackedText, pack_padded


class CLIP(nn.Module):
    """Contrastive language-image model.

    Args:
        visual: the image tower, (B, 3, S, S) -> (B, embed_dim); has `image_size`.
        embed_dim: width of the shared space.
        context_length, vocab_size, width, heads, layers, mlp_ratio: the text transformer's.
        activation: its MLPs'.
        output_dict: `forward` returns a dict instead of a tuple.

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
        activation: type[nn.Module] = nn.GELU,
        output_dict: bool = False,
    ) -> None:
        super().__init__()
        self.output_dict = output_dict
        self.embed_dim, self.context_length, self.vocab_size = embed_dim, context_length, vocab_size
        self.visual = visual
        self.image_size = int(visual.image_size)  # type: ignore[arg-type]
        self.transformer = Transformer(width, layers, heads, mlp_ratio, activation)
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.transformer.init_as_openai()
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

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
        features = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: Tensor | PackedText, normalize: bool = False) -> Tensor:
        """PackedText, or padded (B, L) ids, which are packed first -> (B, embed_dim).

        Raises:
            ValueError: padded text of another shape, no caption, a caption that is empty or longer
                than the context, or cu_seqlens that do not run from 0 to the number of tokens.
        """
        if not isinstance(text, PackedText):
            if text.ndim != 2 or 0 in text.shape or text.is_floating_point():
                raise ValueError(
                    "text: expected PackedText or integer ids (B, L), B and L ≥ 1; "
                    f"got {text.dtype} {tuple(text.shape)}"
                )
            text = pack_padded(text)
        _check_packed(text, self.context_length)
        layout = PackedTokens.of(text.cu_seqlens, self.transformer.heads)
        x = self.token_embedding(text.tokens) + F.embedding(
            layout.positions, self.positional_embedding
        )
        features = self.ln_final(self.transformer(x, layout)) @ self.text_projection
        return F.normalize(features, dim=-1) if normalize else features

    def forward(
        self, image: Tensor | None = None, text: Tensor | PackedText | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor] | dict[str, Tensor | None]:
        """Unit features of both towers and the multiplier exp(logit_scale)."""
        image_features = None if image is None else self.encode_image(image, normalize=True)
        text_features = None if text is None else self.encode_text(text, normalize=True)
        logit_scale = self.logit_scale.exp()
        if self.output_dict:
            return {
                "image_features": image_features,
                "text_features": text_features,
                "logit_scale": logit_scale,
            }
        return image_features, text_features, logit_scale


def _check_packed(text: PackedText, context_length: int) -> None:
    ends = text.cu_seqlens
    if ends.ndim != 1 or len(ends) < 2:
        raise ValueError(
            "text: expected cu_seqlens of shape (B + 1,), B ≥ 1 captions; "
            f"got shape {tuple(ends.shape)}"
        )
    lengths = ends.diff()
    # Together, because each value read from a GPU waits for it.
    first, last, shortest, longest = torch.stack(
        [ends[0], ends[-1], lengths.min(), lengths.max()]
    ).tolist()
    if (first, last) != (0, len(text.tokens)):
        raise ValueError(
            f"text: expected cu_seqlens from 0 to {len(text.tokens)}, the number of tokens; "
            f"got {first} to {last}"
        )
    if shortest < 1 or longest > context_length:
        raise ValueError(
            f"text: expected captions of 1 to {context_length} tokens; got {shortest} to {longest}"
        )
