"""Shards: what is written is read back, and damage is named instead of read around."""

import io
import resource
import tarfile

import pytest
import webdataset

from clipfast.data.shards import ShardError, ShardSet, ShardWriter, expand_shards


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def three_shards(tmp_path):
    with ShardWriter(tmp_path, "train", samples_per_shard=4) as writer:
        for i in range(10):
            writer.write(f"image {i}".encode(), f"caption {i}")
    return writer.shards


def test_samples_come_back_in_order_across_shards(three_shards):
    samples = ShardSet(three_shards)
    assert len(samples) == 10
    read = [samples.read(i) for i in range(10)]
    assert [s.image for s in read] == [f"image {i}".encode() for i in range(10)]
    assert [s.caption for s in read] == [f"caption {i}".encode() for i in range(10)]
    assert [s.shard for s in read] == [three_shards[i // 4] for i in range(10)]


def test_an_index_is_made_once_and_made_anew_when_its_shard_changes(three_shards):
    ShardSet(three_shards)
    index = three_shards[0].with_name(three_shards[0].name + ".clipfast-index")
    first = index.stat().st_mtime_ns
    assert len(ShardSet(three_shards)) == 10
    assert index.stat().st_mtime_ns == first
    write_tar(three_shards[0], [("a.jpg", b"new"), ("a.txt", b"text")])
    assert ShardSet(three_shards).read(0).image == b"new"


@pytest.mark.parametrize("damage", [b"", b"not json", b"[1]", b"{}", None])
def test_a_damaged_index_is_made_anew(three_shards, damage):
    ShardSet(three_shards)
    index = three_shards[0].with_name(three_shards[0].name + ".clipfast-index")
    index.write_bytes(index.read_bytes()[:-10] if damage is None else damage)
    assert ShardSet(three_shards).read(3).caption == b"caption 3"


def test_more_shards_than_a_process_may_hold_open(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=1) as writer:
        for i in range(80):
            writer.write(b"image", f"caption {i}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        samples = ShardSet(writer.shards)
        assert [samples.read(i).caption.decode() for i in range(80)] == [
            f"caption {i}" for i in range(80)
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_unbalanced_braces_are_a_sentence():
    with pytest.raises(ShardError, match="expected balanced braces; got 'x{0..3.tar'"):
        expand_shards("x{0..3.tar")


def test_the_index_is_right_where_webdataset_reads_the_same_tar(three_shards):
    theirs = list(webdataset.WebDataset([str(p) for p in three_shards], shardshuffle=False))
    ours = ShardSet(three_shards)
    for i, sample in enumerate(theirs):
        assert ours.read(i).image == sample["jpg"]
        assert ours.read(i).caption == sample["txt"]
        assert ours.read(i).key == sample["__key__"]


def test_keys_without_image_or_caption_are_left_out_and_counted(tmp_path):
    members = [
        ("a.jpg", b"1"), ("a.txt", b"one"),
        ("b.txt", b"no image"),
        ("c.png", b"3"), ("c.json", b"{}"),
        ("d/e.WEBP", b"5"), ("d/e.txt", b"five"),
        ("._hidden", b"x"),
    ]  # fmt: skip
    samples = ShardSet([write_tar(tmp_path / "x.tar", members)])
    assert [samples.read(i).key for i in range(len(samples))] == ["a", "d/e"]
    assert samples.incomplete == 2


def test_long_and_non_ascii_names_are_kept_whole(tmp_path):
    key = "ordner/" + "ü" * 120
    path = write_tar(tmp_path / "x.tar", [(f"{key}.jpg", b"1"), (f"{key}.txt", b"2")])
    assert ShardSet([path]).read(0).key == key
    assert ShardSet([path]).read(0).key == key, "from the stored index"


@pytest.mark.parametrize("keep", [700, 1500, 2600])
def test_a_truncated_shard_is_refused_by_name(three_shards, keep):
    whole = three_shards[1].read_bytes()
    three_shards[1].write_bytes(whole[:keep])
    with pytest.raises(ShardError, match=r"train-000001.tar: truncated"):
        ShardSet(three_shards)


def test_a_file_that_is_no_tar_is_refused_by_name(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"this is not a tar file" * 100)
    with pytest.raises(ShardError, match=r"x\.tar: truncated or not a tar file"):
        ShardSet([tmp_path / "x.tar"])


def test_a_shard_that_shrinks_while_it_is_read_is_named(three_shards):
    samples = ShardSet(three_shards)
    three_shards[2].write_bytes(b"")
    with pytest.raises(
        ShardError, match=r"train-000002.tar: sample 000000008 is cut short; the file has shrunk"
    ):
        samples.read(8)


def test_brace_ranges_and_joined_patterns_expand(three_shards):
    folder = three_shards[0].parent
    pattern = f"{folder}/train-{{000000..000001}}.tar::{folder}/train-000002.tar"
    assert expand_shards(pattern) == three_shards


def test_a_missing_shard_is_named(three_shards):
    with pytest.raises(ShardError, match=r"train-000003.tar: no such file"):
        expand_shards(f"{three_shards[0].parent}/train-{{000000..000003}}.tar")


def test_no_shard_at_all_and_no_sample_at_all_are_sentences(tmp_path):
    with pytest.raises(ShardError, match="at least one shard"):
        expand_shards("")
    with pytest.raises(ShardError, match="found none in 1 shard"):
        ShardSet([write_tar(tmp_path / "x.tar", [("a.txt", b"alone")])])


def test_a_writer_that_fails_leaves_whole_shards_only(tmp_path):
    def interrupted():
        with ShardWriter(tmp_path, "x", samples_per_shard=2) as writer:
            for _ in range(3):
                writer.write(b"image", "caption")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["x-000000.tar"]
