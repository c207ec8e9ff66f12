"""What tells towers apart whose features differ: the keys of caches of their features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from clipfast.data.feature_cache import fingerprint
from clipfast.data.images.preprocess import Preprocess
from clipfast.models.factory import image_size
from clipfast.models.locking import Part, text_parts

# What features depend on and neither weights nor a module's repr tell.
_UNTOLD = (
    "heads",
    "num_heads",
    "num_attention_heads",
    "pool_type",
    "text_pool_type",
    "pooler_type",
    "tokenizer_name",
)


def image_key(model: Any, preprocess: Preprocess) -> dict[str, str]:
    """Of the image tower, and of how it is shown images."""
    pixels = f"antialiased on uint8; {image_size(model)}; {preprocess}"
    return {"tower": tower_fingerprint([model.visual]), "pixels": pixels}


def text_key(model: Any) -> dict[str, str]:
    """Of the whole text tower, with what `TwoTowers.text_head` tells apart."""
    parts = [model.text] if hasattr(model, "text") else text_parts(model)
    tower = tower_fingerprint(parts)
    return {"tower": tower, "context_length": str(model.context_length)}


def tower_fingerprint(parts: Iterable[Part], described: Iterable[nn.Module] = ()) -> str:
    """Of the parts' weights, and how they and the `described` compute."""
    state: dict[str, Tensor] = {}
    modules = list(described)
    for number, part in enumerate(parts):
        if isinstance(part, nn.Module):
            modules.append(part)
            state |= {f"{number}.{name}": x for name, x in part.state_dict().items()}
        else:
            state[str(number)] = part
    untold = [
        (name, str(getattr(inner, name)))
        for module in modules
        for inner in module.modules()
        for name in _UNTOLD
        if hasattr(inner, name)
    ]
    return fingerprint(state, f"{modules} {untold}")
