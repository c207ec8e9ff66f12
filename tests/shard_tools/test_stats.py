"""`clipfast shards stats`: the figures are those of the samples."""

import csv
import json

import numpy as np
import open_clip
import pytest
from PIL import Image
from shard_files import write_tar

CAPTIONS = [
    "a temple",
    "!",
    "größer als ein Haus",
    " ".join(["word"] * 75),
    " ".join(["word"] * 76),
    "word " * 2000,
]


@pytest.fixture
def path(tmp_path, photos, damaged):
    """Six samples and three that are broken, each otherwise."""
    images = [photos[name] for name in ("large", "small", "png", "webp", "grey", "progressive")]
    members = {}
    for i, (image, caption) in enumerate(zip(images, CAPTIONS, strict=True)):
        members |= {f"{i}.jpg": image, f"{i}.txt": caption.encode()}
    members |= {"cut.jpg": damaged["cut"], "cut.txt": b"half", "alone.txt": b"no image"}
    members |= {"blank.jpg": photos["small"], "blank.txt": b" \n"}
    return write_tar(tmp_path / "x.tar", members)


def test_figures_equal_those_that_are_counted_by_hand(shards, path):
    code, out, _ = shards("stats", path, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["samples"], found["looked_at"], found["usable"]) == (8, 8, 6)
    assert (found["shards"], found["bytes"]) == (1, path.stat().st_size)
    assert found["formats"] == {"JPEG": 4, "PNG": 1, "WebP": 1}
    assert found["captions_cut_at_77"] == 2
    assert sum(found["broken"].values()) == 3
    rows = found["distributions"]
    widths = [320, 60, 150, 90, 180, 200]
    assert rows["image_width"]["min"] == 60
    assert rows["image_width"]["max"] == 320
    assert rows["image_width"]["mean"] == pytest.approx(np.mean(widths))
    assert rows["image_width"]["median"] == np.median(widths)
    assert rows["aspect_ratio"]["max"] == pytest.approx(1.5)
    assert rows["caption_characters"]["max"] == len(CAPTIONS[-1])


def test_tokens_are_counted_as_open_clip_counts_them(shards, path):
    rows = json.loads(shards("stats", path, "--json")[1])["distributions"]
    theirs = open_clip.get_tokenizer("ViT-B-32")(CAPTIONS, 1024)
    lengths = [int((row == 49407).nonzero()[0]) + 1 for row in theirs]
    assert rows["caption_tokens"]["max"] == max(lengths) == 1024
    assert rows["caption_tokens"]["min"] == min(lengths) == 3
    assert rows["caption_tokens"]["mean"] == pytest.approx(np.mean(lengths))


def test_the_table_has_every_quantity_and_what_is_broken(shards, path):
    code, out, _ = shards("stats", path)
    assert code == 0
    for words in (
        *("8 samples in 1 shard", "caption, CLIP tokens", "image height, pixels"),
        *("2 of 6 captions (33.3%) cut at 77 tokens", "4 JPEG", "3 that cannot be used"),
        *("no image", "empty caption", "truncated JPEG"),
    ):
        assert words in out


def test_a_drawn_part_is_the_same_each_time_and_says_so(shards, path):
    first = shards("stats", path, "--json", "--sample", 4)[1]
    assert json.loads(first)["looked_at"] == 4
    assert first == shards("stats", path, "--json", "--sample", 4, "--workers", 1)[1]
    assert "4 of them looked at" in shards("stats", path, "--sample", 4)[1]


def test_the_picture_has_bars_in_each_of_six_histograms(shards, path, tmp_path):
    assert shards("stats", path, "--plot", tmp_path / "x.png")[0] == 0
    picture = np.asarray(Image.open(tmp_path / "x.png").convert("RGB")).astype(int)
    blue = np.abs(picture - [0x1F, 0x5F, 0xA8]).sum(-1) < 30
    height, width = blue.shape
    for row in range(2):
        for column in range(3):
            part = blue[row * height // 2 :, column * width // 3 :][: height // 2, : width // 3]
            assert part.sum() > 100


def test_several_captions_of_a_sample_are_all_counted(shards, tmp_path, photos):
    members = {"a.jpg": photos["small"], "a.json": b'{"captions": ["one", "two words", " "]}'}
    path = write_tar(tmp_path / "x.tar", members)
    found = json.loads(shards("stats", path, "--json")[1])
    assert (found["samples"], found["captions"]) == (1, 2)
    assert found["distributions"]["caption_tokens"]["max"] == 4


def test_a_table_can_be_described_before_shards_are_made_of_it(shards, tmp_path, photos):
    (tmp_path / "a.jpg").write_bytes(photos["large"])
    with open(tmp_path / "x.csv", "w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows(
            [["filepath", "title"], ["a.jpg", "eins"], ["gone.jpg", "zwei"]]
        )
    code, out, _ = shards("stats", tmp_path / "x.csv")
    assert code == 0
    assert "2 samples: " in out
    assert "1 that cannot be used" in out


def test_a_set_without_one_usable_sample_is_described_too(shards, tmp_path, damaged):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": damaged["cut"], "a.txt": b"caption"})
    code, out, _ = shards("stats", path, "--plot", tmp_path / "x.png")
    assert code == 0
    assert "1 that cannot be used" in out
