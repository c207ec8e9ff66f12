"""Format, size and colours without decoding; what is no image of use is told in one phrase."""

import io
import struct
import zlib

import pytest
from pictures import PICTURES, SMALL, encoded
from PIL import Image

from clipfast.data.images.header import read_header
from clipfast.data.sources.samples import UnusableError


@pytest.mark.parametrize("name", PICTURES)
def test_the_size_is_pillows(name):
    header = read_header(PICTURES[name])
    with Image.open(io.BytesIO(PICTURES[name])) as image:
        assert (header.width, header.height) == image.size
        assert header.format.upper() == image.format


@pytest.mark.parametrize(
    ("name", "colour", "bits"),
    [
        ("grey", "grey", 8),
        ("four inks", "cmyk", 8),
        ("palette", "palette", 8),
        ("1 bit", "grey", 1),
        ("transparent WebP", "alpha", 8),
        ("lossless WebP", "rgb", 8),
    ],
)
def test_colours_are_told_apart(name, colour, bits):
    assert read_header(PICTURES[name])[3:] == (colour, bits)


def test_a_thumbnail_in_the_exif_data_is_not_taken_for_the_image():
    thumbnail = encoded(SMALL.resize((16, 8)))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    data = PICTURES["small photo"]
    with_exif = data[:2] + segment + data[2:]
    assert read_header(with_exif)[:3] == ("JPEG", 107, 161)
    with pytest.raises(UnusableError, match="truncated JPEG"):
        read_header(with_exif[:-2])


def png(width, height):
    """Without pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_found_where_pillow_finds_it():
    with pytest.raises(UnusableError, match="4295 megapixels, more than the limit of 179"):
        read_header(png(65536, 65536))
    Image.open(io.BytesIO(png(16384, 10922)))
    assert read_header(png(16384, 10922)).height == 10922
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(png(16384, 10923)))
    with pytest.raises(UnusableError, match="more than the limit"):
        read_header(png(16384, 10923))


def animation(form):
    frames = [SMALL.resize((8, 8)), SMALL.resize((8, 8)).rotate(90)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty image"),
        (animation("GIF"), "expected a JPEG, PNG or WebP image; got GIF"),
        (animation("WEBP"), "got a WebP animation"),
        (encoded(SMALL, "AVIF"), "got AVIF"),
        (encoded(SMALL, "BMP"), "got BMP"),
        (encoded(SMALL, "TIFF"), "got TIFF"),
        (b'<?xml version="1.0"?>\n<svg width="9" height="9"/>', "got SVG"),
        (b"<!DOCTYPE html><html>404</html>", "got an HTML page"),
        (b"no image at all", "got 15 bytes of no known format"),
        (png(0, 5), "its header says 0 × 5"),
        (b"\xff\xd8\xff", "its header is cut short"),
        (b"\x89PNG\r\n\x1a\n", "damaged PNG"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "its header is cut short"),
        (PICTURES["small photo"][:-2], "truncated JPEG"),
        (PICTURES["small photo"][:2000], "truncated JPEG"),
        (PICTURES["progressive"][:-100], "truncated JPEG"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_phrase(data, reason):
    with pytest.raises(UnusableError, match=reason) as raised:
        read_header(data)
    assert "\n" not in str(raised.value)


def test_every_cut_of_a_header_is_an_error_and_no_crash():
    for name in ("small photo", "PNG", "WebP", "lossless WebP", "transparent WebP"):
        for length in range(1, 24):
            with pytest.raises(UnusableError):
                read_header(PICTURES[name][:length])
