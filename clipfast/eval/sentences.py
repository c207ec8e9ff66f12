"""Many sentences to features, in the fewest tokens that a text tower allows.

B sentences, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from clipfast.data.text.tokenizers import tokenizer_for
from clipfast.packed_text import PackedText, lexical_order, share_beginnings

# Of one batch, counting what sentences share as often as they have it.
_TOKENS = 1 << 14
_PADDED = 256  # sentences of one batch, of towers that want padding


@torch.no_grad()
def encode_sentences(model: Any, sentences: Sequence[str]) -> Tensor:
    """unit(encode_text(sentence)) of each.

    No token of padding is computed; by causal towers what sentences begin with in common is
    computed once for all. So the more sentences there are at once the less each costs.

    Args:
        model: in eval mode; ours or open_clip's.
        sentences: one or more.

    Returns:
        (B, D), on the model's device.
    """
    text, device = tokenizer_for(model)(sentences), model.logit_scale.device
    if isinstance(text, Tensor):
        padded = text.split(_PADDED)
        return torch.cat([model.encode_text(t.to(device), normalize=True) for t in padded])
    causal = _is_causal(model)
    order = lexical_order(text) if causal else text.cu_seqlens.diff().argsort()
    features = []
    for captions in _batches(text, order):
        batch = text.take(captions)
        shared = share_beginnings(batch) if causal else batch
        features.append(model.encode_text(shared.to(device), normalize=True))
    return torch.cat(features)[order.argsort().to(device)]


def _batches(text: PackedText, order: Tensor) -> Iterator[Tensor]:
    """Runs of the order with about equally many tokens."""
    ends = text.cu_seqlens.diff()[order].cumsum(0)
    batch = (ends - 1) // _TOKENS
    yield from order.split(batch.bincount().tolist())


def _is_causal(model: Any) -> bool:
    """Whether a token sees those before it alone, as in OpenAI's and open_clip's text towers."""
    return getattr(getattr(model, "text", model), "attn_mask", None) is not None
