"""Tars for tests, and sources of them."""

import io
import tarfile

from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_scan import Entry, Flaw, scan
from clipfast.data.sources.tar_source import TarSource


def write_tar(path, members, **options):
    """Args:
    members: (name or TarInfo, content) each.
    options: of `tarfile.open`.
    """
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pair(key, image=None, caption=None):
    """The members of one sample."""
    image = f"image {key}".encode() if image is None else image
    caption = f"caption {key}".encode() if caption is None else caption
    return [(f"{key}.jpg", image), (f"{key}.txt", caption)]


def pairs(*keys):
    return [member for key in keys for member in pair(key)]


def scanned(path):
    """Keys of the samples, and the flaws."""
    with open(path, "rb") as file:
        found = list(scan(file))
    keys = [entry.key for entry in found if isinstance(entry, Entry)]
    return keys, [flaw for flaw in found if isinstance(flaw, Flaw)]


def source_of(pattern, cache, **options):
    return TarSource(str(pattern), Storage(cache), **options)


def keys_of(source):
    return [source.read(number).place.key for number in range(int(source.counts.sum()))]
