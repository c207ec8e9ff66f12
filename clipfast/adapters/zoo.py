"""The models that an installed open_clip has and clipfast has not, and its weights by tag."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipfast.errors import UserError
from clipfast.models.config import ForeignField
from clipfast.weights.reading import OPEN_CLIP_FILES


def find_config(name: str) -> dict[str, Any] | None:
    """open_clip's configuration of a model, in its JSON form; None if it has none, or is absent."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    return open_clip.get_model_config(name)


def known_weights(name: str, tag: str) -> dict[str, Any] | None:
    """What open_clip knows of a model's weights by a tag such as "openai": where they are, and how
    they want images; None if it knows no such tag, or is absent."""
    if importlib.util.find_spec("open_clip") is None:
        return None
    import open_clip

    known = open_clip.get_pretrained_cfg(name.removesuffix("-quickgelu"), tag)
    return known or open_clip.get_pretrained_cfg(name, tag) or None


def find_weights(name: str, tag: str, cache_dir: str | None = None) -> Path | None:
    """The file of the weights of a tag, fetched if the cache lacks it; None for an unknown tag."""
    known = known_weights(name, tag)
    if known is None:
        return None
    import open_clip

    try:
        return Path(open_clip.download_pretrained(known, cache_dir=cache_dir))
    except Exception as error:  # Whatever the network library of the day raises.
        why = " ".join(str(error).split())[:200]
        raise UserError(f"--pretrained {tag}: the weights cannot be fetched: {why}") from None


def known_tags(name: str) -> list[str]:
    """Of the weights that open_clip knows for a model; none where it is absent."""
    if importlib.util.find_spec("open_clip") is None:
        return []
    import open_clip

    tags: list[str] = open_clip.list_pretrained_tags_by_model(name)
    return tags


def cached_weights(name: str, tag: str, cache_dir: str | None = None) -> Path | None:
    """As `find_weights`, of what is there: nothing is fetched, and what is missing is None."""
    known = known_weights(name, tag) or {}
    if "file" in known:
        return Path(known["file"])
    repository, _, file = known.get("hf_hub", "").rpartition("/")
    if repository and importlib.util.find_spec("huggingface_hub") is not None:
        from huggingface_hub import try_to_load_from_cache

        named = (f"{Path(file).stem}.safetensors", file) if file else OPEN_CLIP_FILES
        for one in named:
            found = try_to_load_from_cache(repository, one, cache_dir=cache_dir)
            if isinstance(found, str):
                return Path(found)
    folder = Path(cache_dir or "~/.cache/clip").expanduser()  # open_clip's own
    path = folder / known.get("url", "").rpartition("/")[2]
    return path if path.is_file() else None


def create(name: str, why: ForeignField, cache_dir: str | None, **options: Any) -> nn.Module:
    """A model of open_clip's own classes; its `tokenizer` is there where that is not CLIP's.

    Args:
        name: open_clip's, or the path of a .json file in its form.
        why: our own classes cannot serve, for the error where open_clip is absent.
        cache_dir: of open_clip's downloads; None is its own.
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
        model: nn.Module = open_clip.create_model(name, cache_dir=cache_dir, **options)
    except Exception as error:  # open_clip's and timm's errors have no type in common.
        raise UserError(f"model {name}: open_clip cannot build it: {error}") from error
    text = (open_clip.get_model_config(name) or {}).get("text_cfg", {})
    if text.get("hf_tokenizer_name") or text.get("tokenizer_kwargs"):
        setattr(model, "tokenizer", Tokenizer(name, cache_dir))  # noqa: B010
    return model


class Tokenizer:
    """Captions -> padded (B, L) int64, by the tokenizer that open_clip has for a model; it is
    fetched when first used, if a cache lacks it."""

    def __init__(self, model_name: str, cache_dir: str | None = None) -> None:
        self.model_name, self.cache_dir = model_name, cache_dir
        self._tokenizer: Any = None

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self._tokenizer is None:
            import open_clip

            try:
                self._tokenizer = open_clip.get_tokenizer(self.model_name, cache_dir=self.cache_dir)
            except Exception as error:  # Whatever the network library of the day raises.
                why = " ".join(str(error).split())[:200]
                raise UserError(f"{self.model_name}: no tokenizer to be had: {why}") from None
        ids: Tensor = self._tokenizer(list(captions))
        return ids
