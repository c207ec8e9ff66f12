"""`KEY=VALUE` words on a command line."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence


class ParseKeyValues(argparse.Action):
    """``key=value`` words to a dict; values are Python literals, or strings if they are none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        parsed = {}
        for word in values or ():
            key, equals, value = word.partition("=")
            if not equals:
                parser.error(f"{option_string}: expected KEY=VALUE; got {word!r}")
            try:
                parsed[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError, TypeError):
                parsed[key] = value
        setattr(namespace, self.dest, parsed)
