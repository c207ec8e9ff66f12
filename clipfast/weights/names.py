"""Names in OpenAI's and open_clip's state dicts: text parts are at the top (CLIP) or under `text.`
(CustomTextCLIP)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

# Sizes beside the weights, by which OpenAI's files are known.
OPENAI_SCALARS = {"input_resolution", "context_length", "vocab_size"}

_TEXT_PARTS = {
    "text_projection",
    "positional_embedding",
    "token_embedding",
    "transformer",
    "ln_final",
}


def has_text_prefix(names: Iterable[str]) -> bool:
    return any(name.startswith("text.") for name in names)


def with_flat_text(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`text.ln_final.weight` -> `ln_final.weight`; names at the top stay."""
    return {
        flat if (flat := name.removeprefix("text.")).split(".")[0] in _TEXT_PARTS else name: tensor
        for name, tensor in state_dict.items()
    }


def with_text_prefix(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`ln_final.weight` -> `text.ln_final.weight`; names under `text.` stay."""
    return {
        f"text.{name}" if name.split(".")[0] in _TEXT_PARTS else name: tensor
        for name, tensor in state_dict.items()
    }
