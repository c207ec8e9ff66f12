"""The models that an installed open_clip has and clipfast has not, and its weights by tag."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipfast.errors import UserError
from clipfast.models.config import ForeignField


def find_config(name: str) -> dict[str, Any] | None:
    """open_clip's configuration of a model, in its JSON form; None if it has none, or is absent."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    return open_clip.get_model_config(name)


def find_weights(name: str, tag: str) -> Path | None:
    """The file of a model's weights that open_clip knows by a tag such as "openai", fetched if its
    cache lacks it; None if it knows no such tag."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    known = open_clip.get_pretrained_cfg(name.removesuffix("-quickgelu"), tag)
    known = known or open_clip.get_pretrained_cfg(name, tag)
    if not known:
        return None
    try:
        return Path(open_clip.download_pretrained(known))
    except Exception as error:  # Whatever the network library of the day raises.
        why = " ".join(str(error).split())[:200]
        raise UserError(f"--pretrained {tag}: the weights cannot be fetched: {why}") from None


def create(name: str, why: ForeignField, **options: Any) -> nn.Module:
    """A model of open_clip's own classes; its `tokenizer` is there where that is not CLIP's.

    Args:
        name: open_clip's, or the path of a .json file in its form.
        why: our own classes cannot serve, for the error where open_clip is absent.
        options: of `open_clip.create_model`.

    Raises:
        UserError: open_clip is not installed, or cannot build the model.
    """
    if importlib.util.find_spec("open_clip") is None:
        raise UserError(f"{why}: pip install open_clip_torch")
    import open_clip

    if name.endswith(".json"):
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    try:
        model: nn.Module = open_clip.create_model(name, **options)
    except Exception as error:  # open_clip's and timm's errors have no type in common.
        raise UserError(f"model {name}: open_clip cannot build it: {error}") from error
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if text.get("hf_tokenizer_name") or text.get("tokenizer_kwargs"):
        setattr(model, "tokenizer", Tokenizer(name))  # noqa: B010
    return model


class Tokenizer:
    """Captions -> padded (B, L) int64, by the tokenizer that open_clip has for a model; it is
    fetched when first used, if a cache lacks it."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._tokenizer: Any = None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self._tokenizer is None:
            import open_clip

            try:
                self._tokenizer = open_clip.get_tokenizer(self.model_name)
            except Exception as error:  # Whatever the network library of the day raises.
                why = " ".join(str(error).split())[:200]
                raise UserError(f"{self.model_name}: no tokenizer to be had: {why}") from None
        ids: Tensor = self._tokenizer(list(captions))
        return ids
