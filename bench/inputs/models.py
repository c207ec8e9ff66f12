"""The models of the cases: built-in ones by name, and a tiny one for which seconds suffice."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from clipfast import create_model

TINY = "tiny"
_TINY_FILE = "clipfast-bench-tiny"  # its name in open_clip, beside open_clip's own
_TINY_CONFIG = {
    "embed_dim": 64,
    "vision_cfg": {
        "image_size": 64,
        "layers": 2,
        "width": 64,
        "head_width": 32,
        "patch_size": 8,
    },
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 64,
        "heads": 2,
        "layers": 2,
    },
}


def ours(name: str, weights: dict | None = None) -> Any:
    model = create_model(name_or_file(name))
    if weights is not None:
        model.load_state_dict(weights)
    return model


def open_clips(name: str, **options: Any) -> Any:
    import open_clip

    return open_clip.create_model(open_clip_name(name), **options)


def name_or_file(name: str) -> str:
    """What `create_model` and --model take."""
    return str(_tiny_file()) if name == TINY else name


def open_clip_name(name: str) -> str:
    if name != TINY:
        return name
    import open_clip

    if _TINY_FILE not in open_clip.list_models():
        open_clip.add_model_config(_tiny_file())
    return _TINY_FILE


@cache
def _folder() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="clipfast-bench-")


def _tiny_file() -> Path:
    file = Path(_folder().name) / f"{_TINY_FILE}.json"
    file.write_text(json.dumps(_TINY_CONFIG))
    return file
