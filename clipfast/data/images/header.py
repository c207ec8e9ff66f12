"""What an encoded image says about itself, read without decoding it."""

from __future__ import annotations

import struct
from typing import NamedTuple

from clipfast.data.sources.samples import UnusableError

# Pillow's, and so open_clip's: above it, Image.open raises DecompressionBombError.
LIMIT = 2 * (1024**3 // 4 // 3)


class Header(NamedTuple):
    """Of a JPEG, PNG or WebP.

    Attributes:
        format: that name.
        height, width: in pixels.
        colour: "grey", "rgb", "cmyk", "palette" or "alpha".
        bits: of a channel.
    """

    format: str
    height: int
    width: int
    colour: str
    bits: int = 8


def read_header(encoded: bytes) -> Header:
    """Format, size and colours.

    Raises:
        UnusableError: no image, one of another format, an animation, a damaged header, a JPEG
            without its end, or more pixels than Pillow would decode.
    """
    if not encoded:
        raise UnusableError("empty image")
    try:
        header = _read(encoded)
    except (struct.error, IndexError):
        raise UnusableError("damaged image: its header is cut short") from None
    pixels = header.height * header.width
    if pixels == 0:
        raise UnusableError(f"damaged image: its header says {header.width} × {header.height}")
    if pixels > LIMIT:
        raise UnusableError(
            f"image of {pixels / 1e6:.0f} megapixels, more than the limit of {LIMIT / 1e6:.0f}"
        )
    return header


def _read(encoded: bytes) -> Header:
    if encoded.startswith(b"\xff\xd8\xff"):
        return _jpeg(encoded)
    if encoded.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(encoded)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _webp(encoded)
    raise UnusableError(f"expected a JPEG, PNG or WebP image; got {_other_format(encoded)}")


def _jpeg(encoded: bytes) -> Header:
    header, at = None, 2
    while True:
        at = encoded.find(b"\xff", at)  # decoders skip what is between markers
        marker = encoded[at + 1] if at >= 0 else 0xD9
        if marker in (0x00, 0xFF):  # no marker, or padding
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # of no length
            at += 2
            continue
        if marker in (0xD9, 0xDA):  # the end, or the first scan
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack_from(">BHHB", encoded, at + 4)
            colour = {1: "grey", 4: "cmyk"}.get(channels, "rgb")
            header = Header("JPEG", height, width, colour, bits)
        at += 2 + max(struct.unpack_from(">H", encoded, at + 2)[0], 2)
    if header is None:
        raise UnusableError("damaged JPEG: no size before its first scan")
    # The end's marker cannot be among a scan's data, but before them, in a thumbnail.
    if encoded.rfind(b"\xff\xd9", at) < 0:
        raise UnusableError("truncated JPEG: it has no end")
    return header


def _png(encoded: bytes) -> Header:
    if encoded[12:16] != b"IHDR":
        raise UnusableError("damaged PNG: no header")
    width, height, bits, colour = struct.unpack_from(">IIBB", encoded, 16)
    names = {0: "grey", 2: "rgb", 3: "palette", 4: "alpha", 6: "alpha"}
    if colour not in names:
        raise UnusableError(f"damaged PNG: no such colour type as {colour}")
    return Header("PNG", height, width, names[colour], bits)


def _webp(encoded: bytes) -> Header:
    kind = encoded[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", encoded, 26)
        return Header("WebP", height & 0x3FFF, width & 0x3FFF, "rgb")
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", encoded, 21)
        width, height = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
        return Header("WebP", height, width, "alpha" if packed >> 28 & 1 else "rgb")
    if kind == b"VP8X":
        flags, low, high, low2, high2 = struct.unpack_from("<B3xHBHB", encoded, 20)
        if flags & 0x02:
            raise UnusableError("expected one image; got a WebP animation")
        width, height = (low | high << 16) + 1, (low2 | high2 << 16) + 1
        return Header("WebP", height, width, "alpha" if flags & 0x10 else "rgb")
    raise UnusableError("damaged WebP: no header")


_STARTS = {
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\0\0\1\0": "an icon",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"%PDF": "PDF",
    b"8BPS": "Photoshop's format",
}


def _other_format(encoded: bytes) -> str:
    for start, name in _STARTS.items():
        if encoded.startswith(start):
            return name
    if encoded[4:8] == b"ftyp":
        return "AVIF" if encoded[8:12] in (b"avif", b"avis") else "HEIF or a video"
    text = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<svg", b"<?xml")) and b"<svg" in text:
        return "SVG"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return f"{len(encoded)} bytes of no known format"
