"""Faults by their kind, with the first examples of each."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from rich.table import Table

from clipfast.data.sources.samples import Fault

_MORE = re.compile(r"([\d,]+) more: ")  # in place of as many faults
_PARTICULAR = re.compile(r"\d[\d,.]*\d|\d")


class Tally:
    """Args:
        faults: the first ones; `add` takes more.
        examples: how many of each kind are kept.

    Attributes:
        total: how many faults there are.
    """

    def __init__(self, faults: Iterable[Fault] = (), *, examples: int = 3) -> None:
        self.total = 0
        self._examples = examples
        self._counts = Counter[str]()
        self._first = defaultdict[str, list[Fault]](list)
        self.extend(faults)

    def extend(self, faults: Iterable[Fault]) -> None:
        for fault in faults:
            self.add(fault)

    def add(self, fault: Fault) -> None:
        more = _MORE.match(fault.reason)
        count = int(more[1].replace(",", "")) if more else 1
        kind = kind_of(fault.reason[more.end() if more else 0 :])
        self.total += count
        self._counts[kind] += count
        if not more and len(self._first[kind]) < self._examples:
            self._first[kind].append(fault)

    def counts(self) -> list[tuple[str, int]]:
        """How many there are of each kind, the most frequent first."""
        return self._counts.most_common()

    def table(self, title: str) -> Table:
        table = Table(title=title, title_justify="left")
        table.add_column("fault", overflow="fold")
        table.add_column("times", justify="right")
        table.add_column("for example", overflow="fold")
        for kind, count in self.counts():
            examples = "\n".join(map(_example, self._first[kind]))
            table.add_row(kind, f"{count:,}", examples, end_section=True)
        return table


def kind_of(reason: str) -> str:
    """A reason without what tells it from others of its kind: numbers and details."""
    return _PARTICULAR.sub("N", re.split(r"[:;(]", reason, maxsplit=1)[0]).strip()


def _example(fault: Fault) -> str:
    shard, offset, key = fault.place
    return shard + f" at {offset:,}" * (offset >= 0) + f", {key}" * bool(key) + f": {fault.reason}"
