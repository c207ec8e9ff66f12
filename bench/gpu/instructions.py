"""Which instructions of tensor cores a kernel's machine code has, and how many: as they are
written, not as often as they run."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

# sm_80: HMMA; sm_90: HGMMA, of a warp group; sm_100: UTCHMMA, of a block; gfx942: v_mfma_….
_SASS = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|QGMMA|IMMA|DMMA)\b")
_AMDGCN = re.compile(r"\b(v_mfma)_")
_FUNCTION = re.compile(r"Function : (\S+)")


class Missing(Exception):
    """A tool is not there, as a sentence."""


def count_sass(sass: str) -> Counter[str]:
    return Counter(_SASS.findall(sass))


def count_amdgcn(assembly: str) -> Counter[str]:
    return Counter(_AMDGCN.findall(assembly))


def disassemble(cubin: bytes) -> dict[str, str]:
    """The SASS of every kernel in a cubin, by its name there.

    Raises:
        Missing: there is no cuobjdump, which Triton brings along.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [cuobjdump(), "-sass", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    parts = _FUNCTION.split(done.stdout)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def cuobjdump() -> Path:
    try:
        import triton
    except ImportError as error:
        raise Missing("triton, which brings cuobjdump, is not installed") from error
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        raise Missing(f"this triton brings no cuobjdump: {tool} is not there")
    return tool
