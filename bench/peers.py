"""The libraries that people would use instead: whether each is here and serves a device.

Each function says why not, as a sentence, and nothing where the peer can be asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

Serves = Callable[[torch.device], str]


def torch_eager(device: torch.device) -> str:
    return ""


def torch_compile(device: torch.device) -> str:
    if device.type == "cuda":
        return _lacks("triton")
    if any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        return ""
    return "torch.compile needs a C++ compiler for a CPU, and none is here"


def sdpa(device: torch.device) -> str:
    """torch.nn.functional.scaled_dot_product_attention."""
    return ""


def sdpa_of_nested_tensors(device: torch.device) -> str:
    if torch.version.cuda is None or torch.cuda.is_available():
        return ""
    return (
        "SDPA of nested tensors asks for a CUDA driver, even on a CPU, where torch is built for one"
    )


def flash_attn(device: torch.device) -> str:
    return _lacks("flash_attn", "flash-attn") or _on_a_gpu(device, "flash-attn")


def apex(device: torch.device) -> str:
    """NVIDIA's, which is built from source; the `apex` of PyPI is another project."""
    spec = find_spec("apex")
    if spec is None:
        return "apex, NVIDIA's, is not installed: it is built from its source"
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "normalization").is_dir() for folder in folders):
        return "the apex that is installed is PyPI's project of that name, not NVIDIA's"
    return _on_a_gpu(device, "apex")


def apex_group_batch_norm(device: torch.device) -> str:
    reason = apex(device)
    if reason or find_spec("bnp") is not None:
        return reason
    return "apex was built without its channels-last batch norm (--bnp)"


def open_clip(device: torch.device) -> str:
    return _lacks("open_clip", "open_clip_torch")


def open_clip_train(device: torch.device) -> str:
    return _lacks("open_clip_train", "open_clip_torch") or webdataset(device)


def transformers(device: torch.device) -> str:
    return _lacks("transformers")


def memeff(device: torch.device) -> str:
    return _lacks("memeff") or _on_a_gpu(device, "memeff")


def siglip_kernel(device: torch.device) -> str:
    return _lacks("siglip_kernel", "siglip-kernel") or _on_a_gpu(device, "siglip-kernel")


def liger(device: torch.device) -> str:
    return _lacks("liger_kernel", "liger-kernel") or _on_a_gpu(device, "Liger")


def inf_cl(device: torch.device) -> str:
    return _lacks("inf_cl", "inf-cl") or _on_a_gpu(device, "Inf-CL")


def dali(device: torch.device) -> str:
    return _lacks("nvidia.dali", "nvidia-dali-cuda130")


def webdataset(device: torch.device) -> str:
    return _lacks("webdataset", "webdataset")


def scikit_learn(device: torch.device) -> str:
    return _lacks("sklearn", "scikit-learn")


def _lacks(module: str, package: str | None = None) -> str:
    try:
        found = find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it is in
        found = False
    if found:
        return ""
    return f"{package or module} is not installed"


def _on_a_gpu(device: torch.device, name: str) -> str:
    return "" if device.type == "cuda" else f"{name} is for NVIDIA GPUs, and this case is on a CPU"
