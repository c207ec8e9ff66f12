"""Weights into the forms that open_clip and Hugging Face's transformers load.

A new file or folder appears whole or not at all. State dicts have open_clip's names, with the text
tower's at the top.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clipfast.data.images.normalize import CLIP_MEAN, CLIP_STD
from clipfast.errors import UserError
from clipfast.models.config import ConvConfig, ModelConfig
from clipfast.weights.architecture import open_clip_json
from clipfast.weights.checkpoint import replacing, save_checkpoint
from clipfast.weights.huggingface import config_to_huggingface, to_huggingface
from clipfast.weights.reading import (
    CONFIG_KEY,
    HF_CONFIG,
    HF_FILES,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_FILES,
)
from clipfast.weights.tokenizer_files import write_tokenizer

_BICUBIC = 3  # of PIL, in whose numbers Hugging Face writes it


def write_open_clip(
    path: Path, state_dict: Mapping[str, Tensor], config: ModelConfig | None
) -> None:
    """open_clip's checkpoint; the configuration goes beside the state dict, where it is ignored."""
    told = {} if config is None else {CONFIG_KEY: open_clip_json(config)}
    save_checkpoint(path, {"epoch": 0, "state_dict": _own_storage(state_dict), **told})


def write_safetensors(
    path: Path, state_dict: Mapping[str, Tensor], config: ModelConfig | None
) -> None:
    """One .safetensors file; the configuration goes into its metadata.

    Raises:
        OSError: it cannot be written.
    """
    told = {} if config is None else {CONFIG_KEY: json.dumps(open_clip_json(config))}
    with replacing(path) as partial:
        partial.touch()
        mode = partial.stat().st_mode
        try:
            save_file(_own_storage(state_dict), partial, {"format": "pt", **told})
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from None
        partial.chmod(mode)  # save_file leaves a file that its owner alone may read


def write_local_dir(folder: Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> None:
    """The folder that `open_clip.create_model("local-dir:FOLDER")` loads.

    Raises:
        UserError: open_clip has no such model.
    """
    if isinstance(config.vision, ConvConfig):
        raise UserError("local-dir: expected a model of open_clip's; got one with clipfast's tower")
    preprocess = {
        "mean": CLIP_MEAN,
        "std": CLIP_STD,
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    with _folder(folder) as partial:
        content = {CONFIG_KEY: open_clip_json(config), "preprocess_cfg": preprocess}
        _write_json(partial / OPEN_CLIP_CONFIG, content)
        write_safetensors(partial / OPEN_CLIP_FILES[0], state_dict, None)


def write_huggingface(folder: Path, state_dict: Mapping[str, Tensor], config: ModelConfig) -> bool:
    """The folder that transformers' CLIPModel and CLIPProcessor load.

    Returns:
        Whether the tokenizer is in it, which needs an installed open_clip.

    Raises:
        UserError: a CLIPModel cannot be that model.
    """
    theirs = config_to_huggingface(config, state_dict["logit_scale"].dtype)
    with _folder(folder) as partial:
        _write_json(partial / HF_CONFIG, theirs)
        _write_json(partial / "preprocessor_config.json", _preprocessor(config.vision.image_size))
        write_safetensors(partial / HF_FILES[0], to_huggingface(state_dict), None)
        return write_tokenizer(partial, config.text.context_length)


def _preprocessor(image_size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": image_size},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }


@contextmanager
def _folder(folder: Path) -> Iterator[Path]:
    """Gives a folder to fill, which then becomes `folder`; where that has files, those of other
    names stay."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if folder.is_dir() and any(folder.iterdir()):
            for file in partial.iterdir():
                os.replace(file, folder / file.name)
        else:
            os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _own_storage(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, as safetensors takes no views and torch.save would write all that a view is of."""
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
