"""The list of samples that could not be used, and the end of a run that meets too many."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path

from clipfast.data.sources.samples import Fault
from clipfast.errors import UserError

# Before so many samples have been tried, their share tells little.
_FEW = 1000


class Quarantine:
    """Lists each fault once, as a line of JSON {shard, offset, key, reason}.

    Args:
        file: appended to; what it lists already, from before a resume, is not listed again. None
            lists nothing, but tells.
        most: the share of unusable ones among the samples tried, above which a run stops.
        tell: called with each fault that is listed.

    Attributes:
        replaced: how many samples had to be replaced, each counted once.
    """

    def __init__(self, file: Path | None, most: float, tell: Callable[[Fault], None]) -> None:
        self.file, self.most, self.tell = file, most, tell
        self.replaced = 0
        self._tried = 0
        self._met = set[tuple[str, int, str]]()
        text = file.read_text() if file is not None and file.is_file() else ""
        self._listed = set(map(_place, _lines(text)))
        self._cut = bool(text) and not text.endswith("\n")  # by a crash
        self._lock = threading.Lock()

    def found(self, fault: Fault) -> None:
        """Lists what opening the data found, which is in no batch and counts as no sample."""
        with self._lock:
            self._list(fault)

    def tried(self, samples: int) -> None:
        with self._lock:
            self._tried += samples

    def replace(self, fault: Fault) -> None:
        """Lists a sample that another takes the place of.

        Raises:
            UserError: there are too many of them.
        """
        with self._lock:
            if fault.place in self._met:
                return
            self._met.add(fault.place)
            self.replaced += 1
            self._list(fault)
            if self.replaced > self.most * max(self._tried, _FEW):
                raise UserError(
                    f"data: expected at most {self.most:.2%} unusable samples (--max-unusable); "
                    f"got {self.replaced:,} among {max(self._tried, self.replaced):,}, the last "
                    f"{fault.place.key} in {fault.place.shard}: {fault.reason}; {self.file} lists "
                    "them"
                )

    def _list(self, fault: Fault) -> None:
        if fault.place in self._listed:
            return
        self._listed.add(fault.place)
        if self.file is not None:
            entry = fault.place._asdict() | {"reason": fault.reason}
            with open(self.file, "a") as file:
                file.write("\n" * self._cut + json.dumps(entry) + "\n")
            self._cut = False
        self.tell(fault)


def _lines(text: str) -> list[dict[str, str]]:
    entries = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            entries.append(json.loads(line))
    return entries


def _place(entry: dict[str, str]) -> tuple[str, int, str]:
    return entry["shard"], int(entry["offset"]), entry["key"]
