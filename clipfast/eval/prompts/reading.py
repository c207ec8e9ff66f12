"""Class names and the sentences they go into: those that come along, and a user's own files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from clipfast.errors import UserError

PLACE = "{}"  # of the name in a sentence
_CLIP_BENCHMARKS_PLACE = "{c}"


class Prompts(NamedTuple):
    """Attributes:
    classes: the names, in the order of the labels.
    templates: sentences with ``{}`` where the name goes.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]


def has_prompts(name: str) -> bool:
    """Whether a set's prompts come along."""
    return _file(name).is_file()


def prompts_of(name: str, theirs: Sequence[str] = ()) -> Prompts:
    """Those that come along.

    Args:
        name: of the set.
        theirs: its classes as its data have them, for sets whose data do. They are read as words,
            "apartment_building/outdoor" as "outdoor apartment building", but where a better name
            comes along.

    Raises:
        UserError: none do.
    """
    if not has_prompts(name):
        raise UserError(
            f"prompts: expected a set whose names and sentences come along; got {name!r}"
        )
    content = json.loads(_file(name).read_text(encoding="utf-8"))
    better = content.get("names", {})
    classes = content.get("classes") or [better.get(n) or as_words(n) for n in theirs]
    return Prompts(tuple(classes), tuple(content["templates"]))


def as_words(name: str) -> str:
    """A folder's name as it is said."""
    return " ".join(reversed(name.replace("_", " ").split("/")))


def read_classes(file: Path, classes: int | None = None) -> tuple[str, ...]:
    """Names, one a line.

    Args:
        classes: how many there are to be; None takes any number.

    Raises:
        UserError: the file cannot be read, or has another number of names.
    """
    names = tuple(lines(_text(file)))
    if classes is not None and len(names) != classes:
        raise UserError(
            f"{file}: expected {classes} names, one a line for each class; got {len(names)}"
        )
    return names


def read_templates(file: Path) -> tuple[str, ...]:
    """Sentences, one a line; ``{c}`` is a place for the name too.

    Raises:
        UserError: the file cannot be read, is empty, or has a sentence without a place.
    """
    return as_templates(_text(file), str(file))


def as_templates(text: str, name: str) -> tuple[str, ...]:
    """As `read_templates`.

    Args:
        name: of the file.
    """
    templates = tuple(line.replace(_CLIP_BENCHMARKS_PLACE, PLACE) for line in lines(text))
    if not templates:
        raise UserError(f"{name}: expected sentences, one a line; got none")
    for template in templates:
        if PLACE not in template:
            raise UserError(f"{name}: expected {{}} where the name goes; got {template!r}")
    return templates


def lines(text: str) -> list[str]:
    """Those that are not empty."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{file}: expected UTF-8; got other bytes") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: expected a file of text; got: {error.strerror}") from None


def _file(name: str) -> Path:
    return Path(__file__).with_name(f"{name}.json")
