"""Hugging Face encoders on packed captions: which can, and the attention that they call.

transformers' encoders know no packing, but most work on each token alone save for two things: a
token's position, which they take as an argument, and attention, which they look up by name. So
captions laid end to end are to them one long sequence, (1, T), and no pad token is computed.

B captions, L tokens of the longest, T tokens of all, H heads, D head width.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from clipfast_kernels import attention
from torch import Tensor, nn

from clipfast.packed_text import pad_rows, token_places

_NAME = "clipfast_packed"

# Positions are added at the start, or turn queries and keys, and come as `position_ids`.
_FROM_ZERO = {"bert", "distilbert", "electra", "ernie", "eurobert", "gte", "nomic_bert"}
_AFTER_PAD_ID = {
    "camembert",
    "data2vec-text",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
}
_LEAST_TRANSFORMERS = 5  # earlier BERTs do not look attention up by name


def why_padded(hf_config: Any) -> str | None:
    """Why an encoder cannot run packed; None if it can."""
    from transformers import __version__

    kind = hf_config.model_type
    if kind not in _FROM_ZERO | _AFTER_PAD_ID:
        return (
            f"an encoder of type {kind} is not known to take positions and attention from outside"
        )
    if int(__version__.split(".")[0]) < _LEAST_TRANSFORMERS:
        return f"transformers {__version__} is older than {_LEAST_TRANSFORMERS}"
    if getattr(hf_config, "is_decoder", False):
        return "its configuration makes it a decoder, is_decoder"
    if getattr(hf_config, "chunk_size_feed_forward", 0):
        return "its configuration cuts sequences in equal parts, chunk_size_feed_forward"
    return None


def first_position(hf_config: Any) -> int:
    """The id of a caption's first position; RoBERTa's relatives count on from the pad id."""
    return hf_config.pad_token_id + 1 if hf_config.model_type in _AFTER_PAD_ID else 0


def counts_padding(hf_config: Any) -> bool:
    """Whether a pad token before others takes a position from them."""
    return hf_config.model_type not in _AFTER_PAD_ID


def register() -> str:
    """Makes `packed_attention` known to transformers.

    Returns:
        Its name there.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, packed_attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    return _NAME


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: bidirectional within each caption.

    Args:
        query: (1, H, T, D); key, value: the same, or fewer heads that H is a multiple of.
        cu_seqlens, max_seqlen: as in `clipfast_kernels.attention`. None is the padded form,
            (B, H, L, D) with `attention_mask`, which transformers' own function serves.

    Returns:
        (1, T, H, D) and, in place of the probabilities, None.
    """
    if cu_seqlens is None or max_seqlen is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out: tuple[Tensor, None] = sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            **others,
        )
        return out
    heads = query.shape[1]
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    if dropout > 0:
        packed = _attention_with_dropout(q, k, v, cu_seqlens, max_seqlen, dropout, scaling)
    else:
        packed = attention(
            *(q, k, v, cu_seqlens), max_seqlen_q=max_seqlen, max_seqlen_k=max_seqlen, scale=scaling
        )
    return packed[None], None


def _attention_with_dropout(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """(T, H, D) -> (T, H, D). Our kernels drop nothing, so this one step is computed padded."""
    real = token_places(cu_seqlens, max_seqlen)
    q, k, v = (pad_rows(x, real, 0.0).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=real[:, None, None], dropout_p=dropout, scale=scaling
    )
    return out.transpose(1, 2)[real]
