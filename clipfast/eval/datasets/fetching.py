"""torchvision's downloads, where a user asks for them, and what to say where nothing is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from clipfast.errors import UserError

T = TypeVar("T")


def not_found(root: object, what: str, page: str, *, fetched: bool = True) -> UserError:
    """The sentence for a set that is not there.

    Args:
        root: where it was looked for.
        what: the set, and its first file or folder.
        page: where it is published.
        fetched: torchvision can download it.
    """
    way = f"--download fetches it from {page}" if fetched else f"it is at {page}"
    return UserError(f"{root}: expected {what}; got none: {way}")


def fetch(name: str, download: Callable[[], T]) -> T:
    """What torchvision makes once it has the files.

    Raises:
        UserError: it could not get them.
    """
    try:
        return download()
    except Exception as error:  # of servers, archives and disks
        what = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"--download {name}: expected the files; got: {what}") from None
