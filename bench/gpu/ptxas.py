"""What ptxas says of kernels under -v."""

from __future__ import annotations

import re
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<target>\w+)'")
_SPILLS = re.compile(
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads"
)
_USED = re.compile(r"Used (?P<registers>\d+) registers(?P<rest>.*)")
_SHARED = re.compile(r"(\d+) bytes smem")


class Compiled(NamedTuple):
    """Of one kernel; registers of a thread, bytes.

    Attributes:
        spilled_bytes: stored and loaded, whichever is more.
        static_shared_bytes: that the source declares; what a launch asks for comes on top.
    """

    name: str
    target: str
    registers: int
    stack_bytes: int
    spilled_bytes: int
    static_shared_bytes: int


def parse(report: str) -> list[Compiled]:
    """Every kernel of a report, in its order.

    Raises:
        ValueError: the report of a kernel is not whole.
    """
    found = []
    parts = _ENTRY.split(report)
    # The text before the first kernel, then name, target and text of each.
    for name, target, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        spills, used = _SPILLS.search(text), _USED.search(text)
        if spills is None or used is None:
            raise ValueError(f"ptxas says nothing of {name}'s registers or spills: {text[:300]!r}")
        shared = _SHARED.search(used["rest"])
        found.append(
            Compiled(
                name,
                target,
                int(used["registers"]),
                int(spills["stack"]),
                max(int(spills["stores"]), int(spills["loads"])),
                int(shared[1]) if shared else 0,
            )
        )
    return found
