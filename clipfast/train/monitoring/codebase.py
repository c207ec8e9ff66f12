"""`--copy-codebase`: the program beside what it made."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import clipfast_kernels

import clipfast

logger = logging.getLogger("clipfast.train")


def copy_codebase(folder: Path) -> None:
    """Copies both packages into ``folder/code``; a copy that is there from an earlier start stays.

    Raises:
        OSError: it cannot be written.
    """
    code = folder / "code"
    if code.exists():
        logger.warning(f"--copy-codebase: {code} is there already and stays as it is")
        return
    for package in (clipfast, clipfast_kernels):
        source = Path(package.__path__[0])
        shutil.copytree(source, code / source.name, ignore=shutil.ignore_patterns("__pycache__"))
