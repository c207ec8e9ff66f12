"""The trainer: `python -m clipfast.train FLAGS`, with open_clip's flags, files and loss.

`parse_args` is imported when it is first used: this package is loaded before its command, which
prepares the process before torch is.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipfast.train.flags.parsing import parse_args

__all__ = ["parse_args"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'clipfast.train' has no attribute {name!r}")
    from clipfast.train.flags.parsing import parse_args

    return parse_args
