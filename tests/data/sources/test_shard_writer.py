"""Writing shards: what a crash, a full disk or a peculiar caption leaves behind."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile

import pytest
import webdataset
from PIL import Image

from clipfast.data.sources.shard_writer import ShardWriter, image_extension, new_shard


def members(path):
    with tarfile.open(path) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def encoded(form):
    buffer = io.BytesIO()
    Image.new("RGB", (5, 4), "red").save(buffer, form)
    return buffer.getvalue()


def test_pairs_go_into_shards_of_the_size_asked_for(tmp_path):
    with ShardWriter(tmp_path / "new", "train", samples_per_shard=4) as writer:
        for i in range(10):
            writer.write(f"image {i}".encode(), f"caption {i}")
    assert [path.name for path in writer.shards] == [f"train-00000{i}.tar" for i in range(3)]
    assert [len(members(path)) for path in writer.shards] == [8, 8, 4]
    assert members(writer.shards[2])["000000009.jpg"] == b"image 9"
    assert members(writer.shards[2])["000000009.txt"] == b"caption 9"


def test_webdataset_reads_keys_images_captions_and_metadata(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=9) as writer:
        writer.write(b"1", "größer\nzwei Zeilen", "jpg")
        writer.write(b"2", ["a", "b"], "png", key="dir/two", metadata={"licence": "CC0"})
        writer.write(b"3", "c", key="ü" * 120, metadata={"width": 3})
    first, second, third = webdataset.WebDataset([str(writer.shards[0])], shardshuffle=False)
    assert first["txt"].decode() == "größer\nzwei Zeilen"
    assert second["__key__"] == "dir/two"
    assert json.loads(second["json"]) == {"licence": "CC0", "captions": ["a", "b"]}
    assert "txt" not in second
    assert third["__key__"] == "ü" * 120
    assert (third["txt"], json.loads(third["json"])) == (b"c", {"width": 3})


@pytest.mark.parametrize(("form", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_an_image_is_named_by_what_it_is(tmp_path, form, extension):
    with ShardWriter(tmp_path, "x", samples_per_shard=1) as writer:
        writer.write(encoded(form), "caption")
    assert set(members(writer.shards[0])) == {f"000000000.{extension}", "000000000.txt"}


def test_other_formats_and_nothing_at_all_have_no_extension():
    assert [image_extension(encoded(form)) for form in ("GIF", "BMP", "TIFF")] == [None] * 3
    assert image_extension(b"") is None


def test_a_key_that_webdataset_would_cut_is_refused(tmp_path):
    with (
        pytest.raises(ValueError, match="no dot after the last slash; got 'a/b.c'"),
        ShardWriter(tmp_path, "x", samples_per_shard=1) as writer,
    ):
        writer.write(b"image", "caption", key="a/b.c")


def test_a_writer_goes_on_after_whole_shards(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=2) as writer:
        for _ in range(4):
            writer.write(b"old", "caption")
    with ShardWriter(tmp_path, "x", samples_per_shard=2, after=writer.shards) as second:
        second.write(b"new", "caption", key="000000004")
    assert [path.name for path in second.shards] == [f"x-00000{i}.tar" for i in range(3)]
    assert b"new" in members(second.shards[2]).values()
    assert b"new" not in members(second.shards[1]).values()


def test_a_writer_that_fails_leaves_whole_shards_only(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, "x", samples_per_shard=2) as writer:
            for _ in range(3):
                writer.write(b"image", "caption")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["x-000000.tar"]


def test_a_failed_shard_leaves_the_older_one_of_its_name(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(b"precious")

    def failing():
        with new_shard(path) as add:
            add("a.jpg", b"image")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        failing()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"x.tar": b"precious"}


def test_a_killed_process_leaves_no_shard_under_its_name_and_the_next_one_writes_it(tmp_path):
    script = (
        "import sys; from pathlib import Path\n"
        "from clipfast.data.sources.shard_writer import new_shard\n"
        "with new_shard(Path(sys.argv[1])) as add:\n"
        "    add('a.jpg', b'half' * 9999); print('here', flush=True); sys.stdin.read()\n"
    )
    path = tmp_path / "x.tar"
    with subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"here\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not path.exists()
    with new_shard(path) as add:
        add("a.jpg", b"whole")
    assert members(path) == {"a.jpg": b"whole"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.tar"]
