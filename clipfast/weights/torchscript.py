"""TorchScript archives, the form of OpenAI's released files, read for their tensors alone.

An archive is a zip: `data.pkl` is the tree of modules, pickled; `data/N` are the tensors' bytes;
`code/` is the program, which is never looked at. The unpickler here knows the few functions that
put a tensor together, and takes every module of the program for a node without behaviour.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.errors import UserError

_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
# Scripting makes the causal mask, which is computed and not learned, a part of the state.
_NOT_WEIGHTS = "attn_mask"


def is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:  # Damaged bytes make zipfile raise almost anything.
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive's module, in their order.

    Raises:
        UserError: the archive is cut short or damaged, or names anything but modules and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _Records(archive)
            tree = _Unpickler(records, f"checkpoint {path}").load()
        return dict(_tensors(tree, ""))
    except UserError:
        raise
    except Exception:  # Damaged bytes make the unpickler raise almost anything.
        raise UserError(
            f"checkpoint {path}: a TorchScript archive that is cut short or damaged"
        ) from None


class _Node:
    """Stands for a module of any class."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.state = state


def _tensors(node: _Node, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in node.state.items():
        if isinstance(value, _Node):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and name != _NOT_WEIGHTS:
            yield prefix + name, value


class _Records:
    """The zip's members; torch stores them without compression, under one folder."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        names = archive.namelist()
        self._root = next(n for n in names if n.endswith("/constants.pkl")).split("/")[0]
        self._storages: dict[tuple[str, torch.dtype], Tensor] = {}

    def read(self, name: str) -> bytes:
        info = self._archive.getinfo(f"{self._root}/{name}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed")
        return self._archive.read(info)

    def storage(self, key: str, dtype: torch.dtype) -> Tensor:
        """All of `data/key` as one flat tensor."""
        if (key, dtype) not in self._storages:
            content = bytearray(self.read(f"data/{key}"))
            flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0).to(dtype)
            self._storages[key, dtype] = flat
        return self._storages[key, dtype]


class _Unpickler(pickle.Unpickler):
    def __init__(self, records: _Records, where: str) -> None:
        super().__init__(io.BytesIO(records.read("data.pkl")))
        self._records, self._where = records, where

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Node
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if f"{module}.{name}" in _FUNCTIONS:
            return _FUNCTIONS[f"{module}.{name}"]
        raise UserError(
            f"{self._where}: expected a TorchScript archive of modules and tensors; it names "
            f"{f'{module}.{name}'!r}, which only executing code would load"
        )

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, *_ = pid
        return self._records.storage(key, dtype)


def _rebuild_tensor(
    flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> Tensor:
    return flat.as_strided(size, stride, offset)  # refuses to reach beyond the storage


def _same(values: list[Any]) -> list[Any]:
    return values


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "collections.OrderedDict": OrderedDict,
    "torch.jit._pickle.build_intlist": _same,
    "torch.jit._pickle.build_doublelist": _same,
    "torch.jit._pickle.build_boollist": _same,
    "torch.jit._pickle.build_tensorlist": _same,
}
