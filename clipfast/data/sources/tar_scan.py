"""What samples a tar has, and what in it cannot be one.

A sample is the members of one key that follow each other: of one path up to the base name's first
dot. It needs an image and a caption. Nothing is ever written under a member's name; one that would
do harm there is refused all the same, since somebody may extract it later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from clipfast.data.sources.image_files import LARGEST
from clipfast.data.sources.tar_members import FILE, FOLDER, DamagedTarError, Member, tar_members

# Where there are several, the first one counts, as in open_clip.
IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp")
CAPTION_EXTENSIONS = ("txt", "json")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONGEST_NAME = 1000  # bytes
_SHOWN = 200


class Flaw(NamedTuple):
    """What cannot be used.

    Attributes:
        offset: where in the tar.
        key: printable, and cut where it is long; empty where the tar itself is damaged.
        reason: a phrase.
    """

    offset: int
    key: str
    reason: str


class Keyed(NamedTuple):
    """Members of one key.

    Attributes:
        members: by extension, in lower case, in their order.
        flaw: of a member that was left out, or of the tar from here on.
    """

    key: str
    members: dict[str, Member]
    flaw: Flaw | None


class Entry(NamedTuple):
    """A sample: an image, and a caption at least.

    Attributes:
        members: all of the key, these among them.
    """

    key: str
    image: Member
    text: Member | None
    json: Member | None
    members: dict[str, Member]


def scan(file: BinaryIO) -> Iterator[Entry | Flaw]:
    """The samples of a tar in their order, and its flaws.

    Raises:
        OSError: the file cannot be read.
    """
    seen = set[str]()
    for keyed in keyed_members(file):
        found = _entry(keyed, seen)
        if keyed.flaw is not None:
            yield keyed.flaw
        elif isinstance(found, Flaw):
            yield found
        if isinstance(found, Entry):
            seen.add(found.key)
            yield found


def keyed_members(file: BinaryIO) -> Iterator[Keyed]:
    """All members of a tar, by their keys; those without an extension belong to none.

    Raises:
        OSError: the file cannot be read.
    """
    key, members, flaw = "", dict[str, Member](), None
    try:
        for member in tar_members(file):
            own_key, extension = _split(member.name)
            reason = _unfit(member, extension)
            if member.kind == FOLDER or not (extension or reason):
                continue
            # open_clip too begins another sample where an extension comes again.
            if (own_key != key or extension in members) and (members or flaw):
                yield Keyed(key, members, flaw)
                members, flaw = {}, None
            key = own_key
            if reason is None:
                members[extension] = member
            else:
                flaw = flaw or Flaw(member.offset, shown(member.name), reason)
    except DamagedTarError as error:
        flaw = Flaw(error.offset, "", error.reason)
    if members or flaw:
        yield Keyed(key, members, flaw)


def shown(name: str) -> str:
    """A member's name or key as it may be printed."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _split(name: str) -> tuple[str, str]:
    """Key and extension; no extension where there is no key either."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def _unfit(member: Member, extension: str) -> str | None:
    """Why a member cannot be part of a sample."""
    name = member.name
    if name.startswith("/"):
        return "the member's name is an absolute path"
    if ".." in name and ".." in name.split("/"):
        return "the member's name leads out of its folder"
    if _CONTROL.search(name):
        return "the member's name has control characters"
    if len(name.encode("utf-8", "surrogateescape")) > _LONGEST_NAME:
        return f"the member's name has more than {_LONGEST_NAME:,} bytes"
    if extension and member.kind != FILE:
        return f"the member is {member.kind}"
    return None


def _entry(keyed: Keyed, seen: set[str]) -> Entry | Flaw | None:
    """None where there is no member."""
    key, members, _ = keyed
    if not members:
        return None
    image = next((members[e] for e in IMAGE_EXTENSIONS if e in members), None)
    text, json = (members.get(extension) for extension in CAPTION_EXTENSIONS)
    has = ", ".join(members)
    used = [part for part in (image, text, json) if part is not None]
    if image is None:
        reason = f"no image ({', '.join(IMAGE_EXTENSIONS)}) next to {has}"
    elif text is None and json is None:
        reason = f"no caption ({' or '.join(CAPTION_EXTENSIONS)}) next to {has}"
    elif not image.size:
        reason = "the image is empty"
    elif (largest := max(part.size for part in used)) > LARGEST:
        reason = f"expected at most {LARGEST / 1e6:,.1f} MB; got {largest / 1e6:,.1f} MB"
    elif key in seen:
        reason = "another sample of the shard has this key"
    else:
        return Entry(key, image, text, json, members)
    offset = next(iter(members.values())).offset
    return Flaw(offset, shown(key), shown(reason))
