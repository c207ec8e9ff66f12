"""From a sample's captions, as they are stored, to the one that is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from clipfast.data.sources.samples import UnusableError

# Where a JSON object has its captions, the first that it has.
KEYS = ("caption", "captions", "text", "texts", "title")

_BYTE_ORDER_MARK = "\ufeff"


class CaptionReader:
    """Chooses one of a sample's captions.

    A caption is a text; or a JSON list of texts; or a JSON object that has a text or a list of them
    under `key`. A text that only looks like JSON is a text, but for a broken object where a key is
    asked for.

    Args:
        key: of JSON objects; None takes the first of `KEYS` that they have.
    """

    def __init__(self, key: str | None = None) -> None:
        self.key = key

    def __call__(self, captions: Sequence[bytes], random: Random | None) -> str:
        """One caption; the first without random numbers.

        Raises:
            UnusableError: there is none, or it is no text.
        """
        usable = self.all(captions)
        if random is None or len(usable) == 1:
            return usable[0]
        return usable[random.randrange(len(usable))]

    def all(self, captions: Sequence[bytes]) -> list[str]:
        """Those that are chosen from.

        Raises:
            UnusableError: there is none, or one is no text.
        """
        found = [text for encoded in captions for text in self._texts(encoded)]
        usable = [text for text in found if text.strip()]
        if not usable:
            raise UnusableError("empty caption" if found else "no caption")
        return usable

    def _texts(self, encoded: bytes) -> list[str]:
        try:
            text = encoded.decode()
        except UnicodeDecodeError:
            raise UnusableError("caption is not UTF-8") from None
        bare = text.lstrip().removeprefix(_BYTE_ORDER_MARK).lstrip()
        if not bare.startswith(("{", "[")):
            return [text]
        try:
            document = json.loads(bare)
        except (ValueError, RecursionError) as error:
            if self.key is None or bare.startswith("["):
                return [text]
            raise UnusableError(
                f"expected JSON with the field {self.key} (--caption-key) as caption; {error}"
            ) from None
        return _strings(self._field(document) if isinstance(document, dict) else document)

    def _field(self, document: dict[str, Any]) -> Any:
        keys = KEYS if self.key is None else (self.key,)
        for key in keys:
            if key in document:
                return document[key]
        there = ", ".join(sorted(document)[:8]) or "none"
        raise UnusableError(
            f"expected the field {' or '.join(keys)} in the caption's JSON (--caption-key); "
            f"got {there}"
        )


def _strings(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    for text in values:
        if not isinstance(text, str):
            raise UnusableError(
                f"expected a text or a list of texts as caption; got {type(text).__name__}"
            )
    return values
