"""The documentation's pages and their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


class Block(NamedTuple):
    """Attributes:
    line: of the page, where its first line of code stands.
    language: of the fence; empty where it has none.
    """

    line: int
    language: str
    code: str


def blocks(page: Path) -> list[Block]:
    found, inside = [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = re.fullmatch(r"```(\S*)", line.strip())
        if fence is None:
            if inside is not None:
                inside[2].append(line)
        elif inside is None:
            inside = (number + 1, fence[1], [])
        else:
            found.append(Block(inside[0], inside[1], "\n".join(inside[2])))
            inside = None
    assert inside is None, f"{page}: a block never ends: {inside}"
    return found
