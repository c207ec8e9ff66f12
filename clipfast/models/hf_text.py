"""A Hugging Face encoder as the text tower, with open_clip's parameter names and their order.

B captions, L context length, T packed tokens, W the encoder's width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipfast.errors import UserError
from clipfast.models import hf_packed
from clipfast.models.config import HFTextConfig
from clipfast.models.hf_loading import load_encoder, load_pretrained
from clipfast.models.hooks import has_user_hooks
from clipfast.models.locking import lock_groups, unlock_layer_norms
from clipfast.packed_text import (
    PackedText,
    check_packed,
    check_padded,
    pad_packed,
    token_places,
)

logger = logging.getLogger(__name__)


class HFTextTower(nn.Module):
    """Any encoder of transformers' AutoModel, or the encoder half of an encoder-decoder; a pooler;
    a projection.

    Encoders that `clipfast.models.hf_packed` lists compute real tokens alone. The others, and any
    that a hook watches, compute padded captions.

    Args:
        config: which encoder, pooler and projection. Poolers:

            - "mean_pooler": the mean of the tokens.
            - "max_pooler": their maximum. open_clip's has a mask of integers, which torch refuses,
              and of the real tokens in place of the padding; so no weights are known that need it.
            - "cls_pooler": the encoder's own pooled output, or the first token where it has none.
            - "cls_last_hidden_state_pooler": the first token.
            - "eos_pooler": the last token.

            Projections: "linear", "mlp", or None for none.
        embed_dim: width of the shared space.

    Attributes:
        transformer: the encoder.
        proj: (B, W) -> (B, embed_dim).
        context_length: captions may be as long.
        vocab_size: the encoder's.
        output_dim: embed_dim.
        tokenizer_name: the folder or hub name of the tokenizer.
        padded_because: why captions are padded; None if they are packed.

    Raises:
        UserError: transformers is not installed, the encoder cannot be had or read, or a field that
            does not go with it.
    """

    def __init__(self, config: HFTextConfig, embed_dim: int) -> None:
        super().__init__()
        if config.hf_pooler_type not in _POOLERS:
            raise UserError(
                f"hf_pooler_type: expected one of {', '.join(_POOLERS)}; "
                f"got {config.hf_pooler_type!r}"
            )
        hf_config = load_pretrained("AutoConfig", config.hf_model_name)
        _check_fits(hf_config, config)
        self.context_length = config.context_length
        self.vocab_size = int(hf_config.vocab_size)
        self.output_dim = embed_dim
        self.tokenizer_name = config.hf_tokenizer_name or config.hf_model_name
        self.pooler_type = config.hf_pooler_type
        self.padded_because = hf_packed.why_padded(hf_config)
        if self.padded_because is not None:
            logger.info(f"text tower: computes padded captions: {self.padded_because}")
        self.transformer: Any = load_encoder(
            config, hf_config, attention=None if self.padded_because else hf_packed.register()
        )
        self.proj = _projection(config.hf_proj_type, hf_config.hidden_size, embed_dim)

    def forward(self, text: PackedText | Tensor) -> Tensor:
        """PackedText, or padded (B, L) ids -> (B, embed_dim).

        Raises:
            ValueError: padded text of another shape, no caption, a caption that is empty or longer
                than the context, or cu_seqlens that do not run from 0 to the number of tokens.
        """
        features: Tensor = self.proj(self.pooled(text))
        return features

    def pooled(self, text: PackedText | Tensor) -> Tensor:
        """As `forward`, before `proj`: (B, W)."""
        with self._autocast():
            pooled = self._pooled(text)
        return pooled.to(self._matrix_dtype)

    def _pooled(self, text: PackedText | Tensor) -> Tensor:
        watched = has_user_hooks(self.transformer)
        padded = watched or self.padded_because is not None
        if isinstance(text, PackedText):
            longest = self._check(text)
            lengths = text.cu_seqlens.diff()
            if padded:
                length = self.context_length if watched else longest
                real = token_places(text.cu_seqlens, length)
                return self._pooled_padded(pad_packed(text, length, self._pad_id), real)
            place = torch.arange(len(text.tokens), device=lengths.device)
            starts = text.cu_seqlens[:-1]
            place = place - starts.repeat_interleave(lengths, output_size=len(place))
            return self._pooled_packed(text, place, longest)
        check_padded(text)
        real = text != self._pad_id
        packed = PackedText(text[real].long(), _cu_seqlens(real))
        longest = self._check(packed)
        if padded:
            return self._pooled_padded(text, real)
        if hf_packed.counts_padding(self.transformer.config):
            place = torch.arange(text.shape[1], device=text.device).expand_as(text)
        else:
            place = real.cumsum(1) - 1
        return self._pooled_packed(packed, place[real], longest)

    def _check(self, text: PackedText) -> int:
        """The longest caption's tokens, or more."""
        if torch.compiler.is_compiling():
            return self.context_length
        return check_packed(text, self.context_length)

    def lock(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the encoder but its last layers; `proj` trains on, as in open_clip.

        Args:
            unlocked_layers: of the embeddings and the layers, how many at the end train on, and
                with them what comes behind the layers; 0 freezes the whole encoder.
            freeze_layer_norm: False leaves all LayerNorms trainable.

        Raises:
            UserError: unlocked_layers is below 0.
        """
        groups = [[self.transformer]]
        if unlocked_layers:
            groups = [[self._embeddings()], *([layer] for layer in self._layers())]
        lock_groups(groups, unlocked_layers)
        if not freeze_layer_norm:
            unlock_layer_norms([self.transformer])

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Layers keep their inputs only, and compute the rest again in the backward.

        Raises:
            UserError: transformers has it not for this encoder.
        """
        if not self.transformer.supports_gradient_checkpointing:
            kind = self.transformer.config.model_type
            raise UserError(
                "--grad-checkpointing: expected a text tower for which transformers has it; "
                f"got one of type {kind}"
            )
        # transformers 5 renamed it on the way to 6.
        renamed = hasattr(self.transformer, "activation_checkpointing_enable")
        prefix = "activation" if renamed else "gradient"
        if enable:
            getattr(self.transformer, f"{prefix}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(self.transformer, f"{prefix}_checkpointing_disable")()

    @property
    def _matrix_dtype(self) -> torch.dtype:
        table = self.transformer.get_input_embeddings().weight
        matrices = (m.weight for m in self.transformer.modules() if isinstance(m, nn.Linear))
        return next(matrices, table).dtype  # GPT-2 has matrices of another class, never converted

    def _autocast(self) -> AbstractContextManager[None]:
        """transformers' modules do not convert between the dtypes of half-precision models, whose
        matrices alone have 16 bits."""
        table = self.transformer.get_input_embeddings().weight
        if table.dtype == self._matrix_dtype:
            return nullcontext()
        return torch.autocast(table.device.type, self._matrix_dtype)

    @property
    def _pad_id(self) -> int:
        return int(self.transformer.config.pad_token_id)

    def _pooled_packed(self, text: PackedText, place: Tensor, longest: int) -> Tensor:
        """Args: place: (T,) int64, each token's in its caption."""
        out = self.transformer(
            input_ids=text.tokens[None],
            position_ids=(place + hf_packed.first_position(self.transformer.config))[None],
            cu_seqlens=text.cu_seqlens,
            max_seqlen=longest,
            return_dict=True,
        )
        tokens = _Tokens(out.last_hidden_state[0], text.cu_seqlens)
        own = getattr(self.transformer, "pooler", None)
        if own is not None:  # takes the first of (B, L, W)
            tokens = tokens._replace(pooler_output=own(tokens.first()[:, None]))
        return _POOLERS[self.pooler_type](tokens)

    def _pooled_padded(self, ids: Tensor, real: Tensor) -> Tensor:
        """Args: real: (B, L) bool, no padding."""
        out = self.transformer(input_ids=ids, attention_mask=real.long(), return_dict=True)
        tokens = _Tokens(
            out.last_hidden_state[real], _cu_seqlens(real), getattr(out, "pooler_output", None)
        )
        return _POOLERS[self.pooler_type](tokens)

    def _embeddings(self) -> nn.Module:
        own: nn.Module | None = getattr(self.transformer, "embeddings", None)
        return own if own is not None else self.transformer.get_input_embeddings()

    def _layers(self) -> nn.ModuleList:
        """The outermost list of modules, which transformers calls layer, layers or block."""
        return next(m for m in self.transformer.modules() if isinstance(m, nn.ModuleList))


class _Tokens(NamedTuple):
    """What an encoder leaves of the real tokens.

    Attributes:
        hidden: (T, W).
        cu_seqlens: (B + 1,) int32.
        pooler_output: (B, W), of encoders with a pooler of their own.
    """

    hidden: Tensor
    cu_seqlens: Tensor
    pooler_output: Tensor | None = None

    def first(self) -> Tensor:
        return self.hidden[self.cu_seqlens[:-1].long()]

    def last(self) -> Tensor:
        return self.hidden[self.cu_seqlens[1:].long() - 1]

    def reduced(self, how: str) -> Tensor:
        lengths = self.cu_seqlens.diff().long()
        # It sums in its input's dtype.
        wide = self.hidden.to(torch.promote_types(self.hidden.dtype, torch.float32))
        return torch.segment_reduce(wide, how, lengths=lengths, unsafe=True).to(self.hidden.dtype)


_POOLERS: dict[str, Callable[[_Tokens], Tensor]] = {
    "mean_pooler": lambda tokens: tokens.reduced("mean"),
    "max_pooler": lambda tokens: tokens.reduced("max"),
    "cls_pooler": lambda tokens: (
        tokens.first() if tokens.pooler_output is None else tokens.pooler_output
    ),
    "cls_last_hidden_state_pooler": _Tokens.first,
    "eos_pooler": _Tokens.last,
}


def _cu_seqlens(real: Tensor) -> Tensor:
    """(B, L) bool -> (B + 1,) int32."""
    return torch.cat([real.new_zeros(1, dtype=torch.int32), real.sum(1).cumsum(0).int()])


def _projection(kind: str | None, width: int, embed_dim: int) -> nn.Module:
    if kind == "linear":
        return nn.Linear(width, embed_dim, bias=False)
    if kind == "mlp":
        hidden = (width + embed_dim) // 2
        return nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.GELU(),
            nn.Linear(hidden, embed_dim, bias=False),
        )
    if kind:
        raise UserError(f"hf_proj_type: expected linear, mlp or null; got {kind!r}")
    if width != embed_dim:
        raise UserError(
            f"hf_proj_type: expected linear or mlp, as the encoder's width {width} is not "
            f"embed_dim, {embed_dim}; got null"
        )
    return nn.Identity()


def _check_fits(hf_config: Any, config: HFTextConfig) -> None:
    for field in ("vocab_size", "hidden_size", "pad_token_id"):
        if getattr(hf_config, field, None) is None:
            raise UserError(
                f"text model {config.hf_model_name}: expected an encoder of text, with {field}; "
                f"got one of type {hf_config.model_type} without"
            )
    positions = getattr(hf_config, "max_position_embeddings", None)
    room = None if positions is None else positions - hf_packed.first_position(hf_config)
    if room is not None and config.context_length > room:
        raise UserError(
            f"context_length: expected at most the encoder's {room} positions; "
            f"got {config.context_length}"
        )
