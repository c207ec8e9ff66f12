import io

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from clipfast.cli import main


def encode(photo: np.ndarray, size: tuple[int, int], form: str = "JPEG", **options) -> bytes:
    """Args:
    size: width and height.
    """
    buffer = io.BytesIO()
    Image.fromarray(photo).resize(size).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """Real photographs, as various programs encode them."""
    temple, flower = load_sample_images().images
    return {
        "large": encode(temple, (320, 240)),
        "small": encode(flower, (60, 40)),
        "progressive": encode(flower, (200, 300), progressive=True),
        "png": encode(temple, (150, 100), "PNG"),
        "webp": encode(flower, (90, 120), "WEBP"),
        "grey": encode(np.asarray(Image.fromarray(temple).convert("L")), (180, 120)),
    }


@pytest.fixture(scope="session")
def damaged(photos) -> dict[str, bytes]:
    """Images that cannot be decoded, or are of another format."""
    temple = load_sample_images().images[0]
    large, png = photos["large"], photos["png"]
    return {
        "empty": b"",
        "cut": large[: len(large) // 2],
        "gif": encode(temple, (20, 20), "GIF"),
        "page": b"<!DOCTYPE html><html>404</html>",
        "inside": png[: len(png) // 2] + bytes(len(png) // 2),
    }


@pytest.fixture
def shards(capsys, monkeypatch):
    """Runs `clipfast shards` and returns its exit code and what it printed on both streams."""
    monkeypatch.setenv("COLUMNS", "300")  # no line of a table is folded

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main(["shards", *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run
