"""The trainer: `python -m clipfast.train FLAGS`, with open_clip's flags, files and loss."""

from clipfast.train.arguments import parse_args

__all__ = ["parse_args"]
