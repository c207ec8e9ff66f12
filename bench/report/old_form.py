"""Results from before rows said what they are of: op, family and size are read off their names."""

from __future__ import annotations

import re
from typing import Any

_FUNCTION = re.compile(r"test_(?P<op>\w+?)(?P<memory>_memory)?(_at_(?P<n>\d+))?(\[|$)")
_FAMILIES = {
    "feeding": re.compile(r"loader|decode|tokenizer"),
    "training": re.compile(r"train|accumulation"),
    "evaluation": re.compile(r"zero_shot|linear_probe|retrieval|features"),
}
# How or where a run was made, not what it is of.
_HOW = {"rounds", "steps", "place"}
_PLACE = re.compile(r"(^|-)(cpu|cuda)-(float|bfloat)\d+(?=-|$)")
_NO_VALUE = "UNSERIALIZABLE"  # pytest-benchmark's word for a parameter that JSON has no form for
_WIDTH = 512  # the features' where nothing else is said
# Whose memory a figure is, as they were named.
_MEMORY = {
    "ours MiB": "ours",
    "MiB": "ours",
    "open_clips MiB": "open_clip",
    "open_clip's MiB": "open_clip",
    "dense MiB": "dense torch",
}
_PEERS = {"contrastive_loss": "open_clip ClipLoss", "sigmoid_loss": "open_clip SigLipLoss"}


def upgraded(benchmark: dict[str, Any]) -> dict[str, Any]:
    """The benchmark in today's form; as it is where it already has it."""
    extra = benchmark["extra_info"]
    if "op" in extra:
        return benchmark
    found = _FUNCTION.match(benchmark["name"])
    op = found["op"] if found else benchmark["name"].partition("[")[0]
    extra = {**extra, "op": op, "function": f"test_{op}", "device": "cpu", "dtype": "float32"}
    n = _pairs(benchmark, found)
    if n is not None:
        extra["size"] = {"axis": "N", "value": n}
    figures = extra.get("figures") or {}
    if found and found["memory"]:
        extra["memory_mib"] = {
            _PEERS.get(op, "open_clip") if _MEMORY[key] == "open_clip" else _MEMORY[key]: value
            for key, value in figures.items()
            if key in _MEMORY
        }
        extra["figures"] = {k: v for k, v in figures.items() if k not in _MEMORY}
    family = next((f for f, names in _FAMILIES.items() if names.search(op)), "ops")
    return {**benchmark, "group": family, "extra_info": extra}


def _pairs(benchmark: dict[str, Any], found: re.Match[str] | None) -> int | None:
    """N, where the row is of the curve over N at the usual width."""
    parameters = benchmark.get("params") or {}
    if parameters.get("d", _WIDTH) != _WIDTH:
        return None
    if "n" in parameters:
        return int(parameters["n"])
    return int(found["n"]) if found and found["n"] else None


def shown(benchmark: dict[str, Any]) -> dict[str, Any]:
    """The parameters that tell what a row is of."""
    return {
        key: value
        for key, value in (benchmark.get("params") or {}).items()
        if key not in _HOW
        and (key, value) != ("d", _WIDTH)
        and not str(value).startswith(_NO_VALUE)
    }


def words(parameters: dict[str, Any]) -> str:
    """Such as "ViT-B-32, batch 32"."""
    return ", ".join(_word(key, value) for key, value in parameters.items())


def _word(key: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return " × ".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{key} {value}"
    return f"{key.upper()} = {value:,}" if len(key) == 1 else f"{key} {value:,}"


def written_id(name: str) -> str:
    """What stands in a name's brackets, but for device and dtype; pytest escapes what is not
    ASCII."""
    written = name.partition("[")[2].removesuffix("]")
    written = _PLACE.sub("", written).removeprefix("-")
    if re.search(r"\\[xu]", written) and written.isascii():
        return written.encode().decode("unicode_escape")
    return written


def made_by_pytest(benchmark: dict[str, Any], written: str) -> bool:
    """Whether an id is no more than the parameters' values, or their names with a number."""
    parameters = {
        k: v for k, v in (benchmark.get("params") or {}).items() if not _PLACE.fullmatch(str(v))
    }
    values = "-".join(str(value) for value in parameters.values())
    numbered = "-".join(
        rf"{re.escape(key)}\d+" if isinstance(value, (list, dict)) else re.escape(str(value))
        for key, value in parameters.items()
    )
    return bool(parameters) and (written == values or re.fullmatch(numbered, written) is not None)
