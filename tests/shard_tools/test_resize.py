"""`clipfast shards resize`: smaller images in the same shards, and nothing else changed."""

import io
import os

import numpy as np
import pytest
import webdataset
from PIL import Image
from shard_files import read_lines, read_tar, write_tar

from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource


@pytest.fixture
def original(tmp_path, photos):
    members = {
        "dir/a.jpg": photos["large"],
        "dir/a.txt": b"a temple",
        "dir/a.json": b'{"licence": "CC0"}',
        "b.png": photos["png"],
        "b.mask.png": photos["png"],
        "b.json": b'{"captions": ["one", "two"]}',
        "c.txt": b"a flower",
        "c.jpeg": photos["progressive"],
        "d.jpg": photos["small"],
        "d.txt": b"small",
        "e.jpg": photos["grey"],
        "e.txt": b"grey",
    }
    (tmp_path / "in").mkdir()
    return write_tar(tmp_path / "in" / "train-000000.tar", members)


def opened(content):
    return Image.open(io.BytesIO(content))


def test_large_images_become_baseline_jpegs_and_all_else_stays(shards, original, tmp_path):
    code, _, _ = shards("resize", original, tmp_path / "out", "--side", 96)
    assert code == 0
    before, after = read_tar(original), read_tar(tmp_path / "out" / original.name)
    assert list(after) == [name.replace("b.png", "b.jpg") for name in before]
    changed = {"dir/a.jpg": (128, 96), "b.jpg": (144, 96), "c.jpeg": (96, 144), "e.jpg": (144, 96)}
    for name, content in after.items():
        if name not in changed:
            assert content == before[name]
            continue
        image = opened(content)
        assert (image.format, image.size) == ("JPEG", changed[name])
        assert "progressive" not in image.info
        if image.mode == "RGB":
            assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)], "4:2:0"


@pytest.mark.parametrize("name", ["large", "png", "webp", "grey"])
def test_the_pixels_are_pillows_bicubic_ones(shards, tmp_path, photos, name):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": photos[name], "a.txt": b"caption"})
    shards("resize", path, tmp_path / "out", "--side", 80, "--quality", 100)
    ours = opened(read_tar(tmp_path / "out" / "x.tar")["a.jpg"])
    theirs = opened(photos[name]).convert("RGB").resize(ours.size, Image.Resampling.BICUBIC)
    difference = np.asarray(ours.convert("RGB"), int) - np.asarray(theirs, int)
    # JPEG halves the colours' resolution, hence the mean over all pixels.
    assert np.abs(difference).mean() < 3


def test_palettes_alpha_and_deep_grey_are_made_small_too(shards, tmp_path, photos):
    photo = opened(photos["png"])
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    members = {}
    for key, image in {
        "alpha": photo.convert("RGBA"),
        "palette": photo.quantize(64),
        "bits": photo.convert("1"),
        "deep": deep,
    }.items():
        written = io.BytesIO()
        image.save(written, "PNG")
        members |= {f"{key}.png": written.getvalue(), f"{key}.txt": b"caption"}
    cmyk = io.BytesIO()
    photo.convert("CMYK").save(cmyk, "JPEG")
    members |= {"cmyk.jpg": cmyk.getvalue(), "cmyk.txt": b"caption"}
    path = write_tar(tmp_path / "x.tar", members)
    shards("resize", path, tmp_path / "out", "--side", 50)
    made = read_tar(tmp_path / "out" / "x.tar")
    for key in ("alpha", "palette", "bits", "deep", "cmyk"):
        image = opened(made[f"{key}.jpg"])
        assert (image.size, image.mode) in (((75, 50), "RGB"), ((75, 50), "L"))
        mean = np.asarray(image.convert("L")).mean()
        assert abs(mean - np.asarray(photo.convert("L")).mean()) < 12, key


def test_webdataset_and_training_read_what_is_made(shards, original, tmp_path):
    shards("resize", original, tmp_path / "out", "--side", 96)
    path = tmp_path / "out" / original.name
    theirs = list(webdataset.WebDataset([str(path)], shardshuffle=False))
    ours = TarSource(str(path), Storage(tmp_path / "cache"))
    assert [sample["__key__"] for sample in theirs] == ["dir/a", "b", "c", "d", "e"]
    assert [ours.read(i).place.key for i in range(5)] == ["dir/a", "b", "c", "d", "e"]
    assert ours.read(0).image == theirs[0]["jpg"]
    assert ours.read(3).captions == (theirs[3]["txt"],)


def test_what_cannot_be_used_is_left_out_and_listed(shards, tmp_path, photos, damaged):
    members = {"z.txt": b"no image"}
    for name, image in {"good": photos["large"], **damaged, "last": bytes(30000)}.items():
        members |= {f"{name}.jpg": image, f"{name}.txt": b"caption"}
    path = write_tar(tmp_path / "x.tar", members)
    os.truncate(path, path.stat().st_size - 20000)
    code, out, _ = shards("resize", path, tmp_path / "out")
    assert code == 0
    assert set(read_tar(tmp_path / "out" / "x.tar")) == {"good.jpg", "good.txt"}
    listed = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert {"z", *damaged} <= {line["key"] for line in listed}
    assert f"{len(listed)} left out" in out


def test_whole_shards_are_passed_over_until_their_original_is_newer(shards, original, tmp_path):
    arguments = ["resize", original, tmp_path / "out", "--side", 96]
    shards(*arguments)
    copy = tmp_path / "out" / original.name
    first = copy.stat().st_mtime_ns
    assert "1 shard there already" in shards(*arguments)[1]
    assert copy.stat().st_mtime_ns == first
    os.utime(original, ns=(first + 10**9, first + 10**9))
    shards(*arguments)
    assert copy.stat().st_mtime_ns > first


def test_other_settings_do_not_go_on_in_the_same_folder(shards, original, tmp_path):
    shards("resize", original, tmp_path / "out", "--side", 96)
    code, _, error = shards("resize", original, tmp_path / "out", "--side", 64)
    assert code == 2
    assert "expected a folder begun with side 64; it was begun with 96" in error


def test_originals_are_never_written_over(shards, original):
    before = original.read_bytes()
    code, _, error = shards("resize", original, original.parent, "--side", 96)
    assert code == 2
    assert "expected an empty folder" in error
    assert original.read_bytes() == before


def test_two_shards_of_one_name_are_refused(shards, original, tmp_path):
    code, _, error = shards("resize", f"{original}::{original}", tmp_path / "out")
    assert code == 2
    assert "got two called train-000000.tar" in error


def test_nothing_usable_is_one_sentence_and_leaves_no_shard(shards, tmp_path, damaged):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": damaged["cut"], "a.txt": b"caption"})
    code, _, error = shards("resize", path, tmp_path / "out")
    assert code == 2
    assert "expected a sample that can be used; got none" in error
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_the_bytes_before_and_after_are_told(shards, original, tmp_path):
    _, out, _ = shards("resize", original, tmp_path / "out", "--side", 32, "--quality", 50)
    assert "5 samples, 5 of them made smaller, in 1 shard" in out
    assert "before" in out
    after = (tmp_path / "out" / original.name).stat().st_size
    assert f"({after / original.stat().st_size:.0%})" in out
