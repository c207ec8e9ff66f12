"""What `verify` found on a device: the file that keeps it, and what an op's call reads of it.

A call only looks into a dictionary. The file is read once per process and device, when the first
call comes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

# Where what `verify` measured decides; elsewhere the order in which an op lists its backends does.
MEASURED_DEVICES = {"cuda"}

_FORMAT = "clipfast verdict 1"


class Row(NamedTuple):
    """One backend on one kind of call.

    Attributes:
        op: the public function's name.
        shape_class: of the op's trials.
        dtype: of the features, e.g. "float16".
        backend: its name.
        status: "right", "wrong", "crashed", or "out of memory".
        error: max|kernel − float64 reference| of the tensor that is furthest out.
        allowed: the most that this error may be.
        milliseconds: the median of forward and backward; None where it was not timed.
        note: that tensor's name, or what happened, as a sentence.
    """

    op: str
    shape_class: str
    dtype: str
    backend: str
    status: str
    error: float | None
    allowed: float | None
    milliseconds: float | None
    note: str


class Verdict(NamedTuple):
    """What `verify` found on one model of device.

    Attributes:
        device: the model's name.
        versions: of all that the answer hangs on.
        pins: op to the backend that the user pinned.
        rows: one per op, shape class, dtype and backend.
    """

    device: str
    versions: dict[str, str]
    pins: dict[str, str]
    rows: list[Row]

    def untrusted(self) -> dict[tuple[str, str, str], Row]:
        """(op, dtype, backend) to the row that damns it.

        Who is wrong once in a dtype is not trusted in it anywhere, and who crashes once in none.
        """
        dtypes = {row.dtype for row in self.rows}
        found = {}
        for row in self.rows:
            if row.status == "wrong":
                found[row.op, row.dtype, row.backend] = row
            elif row.status == "crashed":
                found |= {(row.op, dtype, row.backend): row for dtype in dtypes}
        return found

    def rankings(self) -> dict[tuple[str, str, str], tuple[str, ...]]:
        """(op, dtype, shape class) to its trusted backends, the fastest first."""
        untrusted = self.untrusted()
        timed: dict[tuple[str, str, str], list[tuple[float, str]]] = {}
        for row in self.rows:
            trusted = (row.op, row.dtype, row.backend) not in untrusted
            if row.milliseconds is not None and trusted:
                key = row.op, row.dtype, row.shape_class
                timed.setdefault(key, []).append((row.milliseconds, row.backend))
        return {key: tuple(name for _, name in sorted(found)) for key, found in timed.items()}


class _InUse(NamedTuple):
    pins: dict[str, str]
    rankings: dict[tuple[str, str, str], tuple[str, ...]]
    untrusted: frozenset[tuple[str, str, str]]


_IN_USE: dict[torch.device, _InUse] = {}


def use(verdict: Verdict | None, device: torch.device) -> None:
    """From now on, this process's calls on the device go by this verdict (None: by none)."""
    found = verdict or Verdict("", {}, {}, [])
    _IN_USE[device] = _InUse(found.pins, found.rankings(), frozenset(found.untrusted()))


def pinned(op: str, device: torch.device) -> str | None:
    """The backend that the user pinned for this op and device."""
    return _in_use(device).pins.get(op)


def ranking(op: str, dtype: torch.dtype, shape_class: str, device: torch.device) -> tuple[str, ...]:
    """The backends that were found right on such calls, the fastest first."""
    return _in_use(device).rankings.get((op, dtype_name(dtype), shape_class), ())


def trusted(
    op: str, dtype: torch.dtype, backends: tuple[str, ...], device: torch.device
) -> tuple[str, ...]:
    """Those of the backends that nothing is known against."""
    untrusted, name = _in_use(device).untrusted, dtype_name(dtype)
    return tuple(backend for backend in backends if (op, name, backend) not in untrusted)


def _in_use(device: torch.device) -> _InUse:
    if device not in _IN_USE:
        known = device.type in ("cpu", "cuda")
        use(read_verdict(device) if known else None, device)
    return _IN_USE[device]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def device_name(device: torch.device) -> str:
    """The model: two devices of one name are taken for equal."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        model = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        model = None
    return model[1] if model else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Of everything that decides which kernels are right and fast, beside the device."""
    return {
        "clipfast": _installed("clipfast"),
        "torch": str(torch.__version__),
        "triton": _installed("triton", "pytorch-triton", "pytorch-triton-rocm"),
        "flash_attn": _installed("flash-attn-4", "flash-attn"),
        "cuda": torch.version.cuda or torch.version.hip or "none",
        "driver": _driver(),
    }


def _installed(*names: str) -> str:
    for name in names:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "none"


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "none"
    version = re.search(r"\s(\d{3,}\.\d+(\.\d+)?)\s", text)
    return version[1] if version else "unknown"


def verdict_path(device: torch.device, cache: str | os.PathLike[str] | None = None) -> Path:
    """The file of this model of device, in the folder given or in the user's cache folder."""
    slug = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    return _cache_folder(cache) / f"verdict-{slug}.json"


def _cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    if cache is not None:
        return Path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clipfast"


def read_verdict(
    device: torch.device, cache: str | os.PathLike[str] | None = None
) -> Verdict | None:
    """The device's verdict from its file; None where there is none that can be used.

    A file that cannot be used is a warning, never an error. Of one that other versions made, the
    pins stay: they are the user's word, not a measurement.
    """
    try:
        path = verdict_path(device, cache)
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, RuntimeError, UnicodeDecodeError) as error:
        _warn(f"{error}: the verdict of an earlier verify() cannot be read and is ignored")
        return None
    try:
        verdict = _parsed(text)
    except (ValueError, TypeError, KeyError, AttributeError):
        _warn(f"{path}: this is no verdict that verify() wrote; it is ignored")
        return None
    if verdict.device != device_name(device):
        _warn(f"{path}: this verdict is of {verdict.device}; it is ignored on this device")
        return None
    now = versions()
    if verdict.versions != now:
        changed = [
            f"{part} {verdict.versions.get(part, 'none')} then, {now[part]} now"
            for part in now
            if verdict.versions.get(part) != now[part]
        ]
        _warn(f"{path}: this verdict is out of date and ignored ({'; '.join(changed)}): verify()")
        return Verdict(verdict.device, now, verdict.pins, [])
    return verdict


def _parsed(text: str) -> Verdict:
    content: dict[str, Any] = json.loads(text)
    if content["format"] != _FORMAT:
        raise ValueError(content["format"])
    rows = [Row(**row) for row in content["rows"]]
    for row in rows:
        if not (row.milliseconds is None or isinstance(row.milliseconds, (int, float))):
            raise TypeError(row)
    device, made_with, pins = content["device"], content["versions"], content["pins"]
    strings = [device, *made_with.items(), *pins.items()]
    if not all(isinstance(s, str) for pair in strings for s in pair):
        raise TypeError(strings)
    return Verdict(device, made_with, pins, rows)


def write_verdict(
    verdict: Verdict, device: torch.device, cache: str | os.PathLike[str] | None = None
) -> None:
    """Keeps the verdict for later processes, whole or not at all.

    A folder that cannot be written is a warning: this process has its verdict all the same.
    """
    content = {"format": _FORMAT, **verdict._asdict(), "rows": [r._asdict() for r in verdict.rows]}
    try:
        path = verdict_path(device, cache)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
        part.replace(path)
    except (OSError, RuntimeError) as error:
        _warn(f"{error}: the verdict cannot be kept; other processes will not know it")


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)
