"""Configurations, encoders and tokenizers from a Hugging Face folder or hub.

No code of a folder is ever run: transformers' own classes read safetensors, or a pickle as nothing
but tensors.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clipfast.errors import UserError
from clipfast.models.config import HFTextConfig

logger = logging.getLogger(__name__)


def load_pretrained(auto_class: str, name: str, **options: Any) -> Any:
    """``transformers.<auto_class>.from_pretrained(name, **options)``.

    Args:
        name: a folder, from which alone is read, or a model on the hub, which transformers looks up
            in its cache and else fetches.

    Raises:
        UserError: transformers is not installed, or the model cannot be had or read.
    """
    options |= {"trust_remote_code": False, "local_files_only": Path(name).is_dir()}
    try:
        return getattr(_transformers(), auto_class).from_pretrained(name, **options)
    except UserError:
        raise
    except Exception as error:  # transformers', safetensors' and the network's: none in common.
        why = " ".join(str(error).split())[:300]
        raise UserError(
            f"text model {name}: expected a folder in Hugging Face's form, or a model in its cache "
            f"or on its hub, for {auto_class}; {why}"
        ) from None


def load_encoder(config: HFTextConfig, hf_config: Any, *, attention: str | None) -> nn.Module:
    """The encoder in float32, with its weights or freshly initialised.

    Args:
        hf_config: transformers' configuration of it.
        attention: transformers' name of an attention; None is its default.

    Raises:
        UserError: as `load_pretrained`.
    """
    # In any case: a configuration may name an attention that transformers would fetch.
    hf_config._attn_implementation = attention
    options: dict[str, Any] = {"dtype": torch.float32}
    if _has_pooler_option(hf_config):
        options["add_pooling_layer"] = config.hf_pooler_type == "cls_pooler"
    if config.hf_model_pretrained:
        options |= {"config": hf_config, "weights_only": True, "output_loading_info": True}
        with _quiet():
            model, found = load_pretrained("AutoModel", config.hf_model_name, **options)
        if missing := sorted(found["missing_keys"]):
            logger.warning(
                f"text model {config.hf_model_name}: freshly initialised, as it has no weights for "
                f"them: {', '.join(missing)}"
            )
    else:
        model = _transformers().AutoModel.from_config(hf_config, **options)
    encoder: nn.Module = model.encoder if hf_config.is_encoder_decoder else model
    if (takes := encoder.main_input_name) != "input_ids":
        raise UserError(
            f"text model {config.hf_model_name}: expected an encoder of input_ids; "
            f"got one of {takes}"
        )
    return encoder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar, and its table of weights that no one has a use for."""
    said = _transformers().utils.logging
    verbosity, bar = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(verbosity)
        if bar:
            said.enable_progress_bar()


def _transformers() -> Any:
    if importlib.util.find_spec("transformers") is None:
        raise UserError(
            "hf_model_name: expected transformers to be installed; got none: "
            "pip install 'clipfast[hf]'"
        )
    import transformers

    return transformers


def _has_pooler_option(hf_config: Any) -> bool:
    kind = _transformers().MODEL_MAPPING.get(type(hf_config), None)
    return inspect.isclass(kind) and "add_pooling_layer" in inspect.signature(kind).parameters
