"""Where a run runs: versions and machine, for whoever has to repeat it."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

import torch
from clipfast_kernels.verdicts import device_name

import clipfast
from clipfast.ranks.world import World

_PACKAGES = ("torch", "torchvision", "deepspeed", "open_clip_torch", "timm", "transformers")


def environment(world: World) -> dict[str, str]:
    """Facts by name; no names of users or hosts."""
    facts = {
        "clipfast": clipfast.__version__,
        "Python": f"{platform.python_version()} on {platform.machine()}, {platform.system()}",
        **{name: version for name in _PACKAGES if (version := _installed(name))},
        "processor": f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores; torch takes "
        f"{torch.get_num_threads()} in each process",
    }
    if world.device.type == "cuda":
        facts["GPU"] = (
            f"{device_name(world.device)}, CUDA {torch.version.cuda or torch.version.hip}"
        )
    facts["processes"] = str(world.size)
    facts["command"] = _command()
    return facts


def _command() -> str:
    """The process's, as it was typed, but for the folders that the program lies in."""
    program = Path(sys.argv[0])
    name = program.name
    if name == "__main__.py":
        package = "clipfast.train" if program.parent.name == "train" else program.parent.name
        name = f"python -m {package}"
    return " ".join([name, *map(shlex.quote, sys.argv[1:])])


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
