"""Images inside the page, so that it stays one file."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path


def data_uri(path: Path) -> str:
    """Raises:
    OSError: it cannot be read.
    """
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
