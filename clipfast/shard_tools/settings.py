"""A folder of results remembers what it was made with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from clipfast.errors import UserError


def begin(file: Path, settings: Mapping[str, object]) -> None:
    """Makes the file's folder and writes the settings there, or finds that an earlier run has.

    Raises:
        UserError: the folder holds something else, or results of other settings.
    """
    folder = file.parent
    if file.is_file():
        _compare(file, settings)
        return
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if not name.endswith(".partial")]:
        raise UserError(
            f"{folder}: expected an empty folder, or one that the same command has begun; it "
            f"holds {', '.join(others[:3])}: name another folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(json.dumps(settings, indent=1) + "\n")
    os.replace(partial, file)


def _compare(file: Path, settings: Mapping[str, object]) -> None:
    try:
        found = json.loads(file.read_text())
        differing = [name for name in settings if settings[name] != found[name]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file}: expected settings in JSON; got something else") from None
    if differing:
        name = differing[0]
        raise UserError(
            f"{file.parent}: expected a folder begun with {name.replace('_', ' ')} "
            f"{settings[name]}; it was begun with {found[name]}: name another folder"
        )
