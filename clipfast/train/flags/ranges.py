"""What the values of flags may be: each module of flags has a table of its own."""

from __future__ import annotations

from collections.abc import Callable

# Attribute of the namespace: what is expected, in words, and the test.
Ranges = dict[str, tuple[str, Callable[[float], bool]]]
