"""Samples of several shards by number, whatever happens to the shards meanwhile."""

import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import webdataset
from tars import pair, pairs, source_of, write_tar

from clipfast.data.sources.samples import UnusableError
from clipfast.data.sources.shard_names import ShardError, expand_shards, split_sources
from clipfast.data.sources.shard_writer import ShardWriter


@pytest.fixture
def shards(tmp_path):
    with ShardWriter(tmp_path / "shards", "train", samples_per_shard=4) as writer:
        for i in range(10):
            writer.write(f"image {i}".encode(), f"caption {i}")
    return writer.shards


@pytest.fixture
def source(shards, tmp_path):
    return source_of(f"{shards[0].parent}/train-{{000000..000002}}.tar", tmp_path / "cache")


def test_samples_come_back_in_order_across_shards(source, shards):
    assert source.counts.tolist() == [4, 4, 2]
    for i in range(10):
        sample = source.read(i)
        assert (sample.image, sample.captions) == (
            f"image {i}".encode(),
            (f"caption {i}".encode(),),
        )
        assert sample.place.shard == str(shards[i // 4])
        assert shards[i // 4].read_bytes()[sample.place.offset :].startswith(sample.image)
        assert source.place(i) == sample.place


def test_an_image_that_is_not_asked_for_is_left_out(source):
    sample = source.read(7, image=False)
    assert (sample.image, sample.captions) == (b"", (b"caption 7",))


def test_samples_are_those_that_webdataset_reads(source, shards):
    theirs = list(webdataset.WebDataset([str(p) for p in shards], shardshuffle=False))
    assert len(theirs) == 10
    for i, sample in enumerate(theirs):
        ours = source.read(i)
        assert (ours.image, ours.captions[0]) == (sample["jpg"], sample["txt"])
        assert ours.place.key == sample["__key__"]


def test_the_json_is_the_caption_where_it_is_preferred_or_alone(tmp_path):
    members = [*pair("a"), ("a.json", b'{"x": 1}'), ("b.png", b"2"), ("b.json", b"[]")]
    path = write_tar(tmp_path / "x.tar", members)
    for prefer_json, captions in ((False, [b"caption a", b"[]"]), (True, [b'{"x": 1}', b"[]"])):
        source = source_of(path, tmp_path / "cache", prefer_json=prefer_json)
        assert [source.read(i).captions[0] for i in range(2)] == captions


def test_more_shards_than_may_be_open_are_read_by_many_threads(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=1) as writer:
        for i in range(60):
            writer.write(b"image", f"caption {i}")
    pattern = f"{tmp_path}/x-{{000000..{len(writer.shards) - 1:06d}}}.tar"
    source = source_of(pattern, tmp_path / "cache", most_open=3)
    open_before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda i: source.read(i % 60).captions[0].decode(), range(600)))
    assert read == [f"caption {i % 60}" for i in range(600)]
    assert len(os.listdir("/proc/self/fd")) <= open_before + 3 * 2


def test_a_low_limit_of_open_files_is_kept(tmp_path):
    with ShardWriter(tmp_path, "x", samples_per_shard=1) as writer:
        for i in range(80):
            writer.write(b"image", f"caption {i}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 50
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, hard))
    try:
        source = source_of(f"{tmp_path}/x-{{000000..000079}}.tar", tmp_path / "cache")
        assert [source.read(i).captions[0].decode() for i in range(80)] == [
            f"caption {i}" for i in range(80)
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_that_has_gone_costs_its_samples_only(source, shards):
    os.remove(shards[1])
    with pytest.raises(UnusableError, match="gone since it was indexed") as found:
        source.read(5)
    assert found.value.place.shard == str(shards[1])
    assert found.value.place.key == "000000005"
    assert source.read(3).captions == (b"caption 3",)
    assert source.read(9).captions == (b"caption 9",)


@pytest.mark.parametrize("cut", [0, 700])
def test_a_shard_that_shrinks_while_it_is_read_costs_its_samples_only(source, shards, cut):
    assert source.read(9).captions == (b"caption 9",)
    os.truncate(shards[2], cut)
    with pytest.raises(UnusableError, match="changed since it was indexed") as found:
        source.read(9)
    assert found.value.place.key == "000000009"
    assert source.read(0).captions == (b"caption 0",)


def test_a_shard_that_shrank_is_not_believed_in_what_is_left(source, shards):
    assert source.read(8).captions == (b"caption 8",)
    os.truncate(shards[2], 2600)
    for number in (9, 8):
        with pytest.raises(UnusableError, match="changed since it was indexed"):
            source.read(number)


def test_another_size_at_the_same_time_is_another_shard(source, shards, tmp_path):
    stat = shards[2].stat()
    write_tar(shards[2], pairs(*(f"{i:09d}" for i in range(20))))
    os.utime(shards[2], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UnusableError, match="changed since it was indexed"):
        source.read(8)
    pattern = f"{shards[0].parent}/train-{{000000..000002}}.tar"
    assert source_of(pattern, tmp_path / "cache").counts.tolist() == [4, 4, 20]


def test_a_shard_that_is_replaced_by_another_gives_no_wrong_sample(source, shards, tmp_path):
    other = write_tar(tmp_path / "other.tar", pairs("x", "y"))
    os.replace(other, shards[2])
    with pytest.raises(UnusableError, match="changed since it was indexed"):
        source.read(8)


def test_a_later_start_opens_no_index(source, shards, tmp_path):
    folder = shards[0].parent
    assert (folder / "clipfast-manifest.json").is_file()
    for shard in shards:
        os.remove(f"{shard}.clipfast-index")
    again = source_of(f"{folder}/train-{{000000..000002}}.tar", tmp_path / "cache")
    assert again.counts.tolist() == [4, 4, 2]
    assert not list(folder.glob("*.clipfast-index"))
    assert again.read(6).captions == (b"caption 6",)
    assert [p.name for p in folder.glob("*.clipfast-index")] == ["train-000001.tar.clipfast-index"]


def test_copies_have_one_fingerprint_and_other_samples_or_orders_another(source, shards, tmp_path):
    folder = shards[0].parent
    copy = shutil.copytree(folder, tmp_path / "copy")
    same = source_of(f"{copy}/train-{{000000..000002}}.tar", tmp_path / "cache")
    assert same.fingerprint == source.fingerprint
    reordered = source_of(f"{folder}/train-{{000001,000000,000002}}.tar", tmp_path / "cache")
    fewer = source_of(f"{folder}/train-{{000000..000001}}.tar", tmp_path / "cache")
    assert len({s.fingerprint for s in (source, reordered, fewer)}) == 3


def test_patterns_expand_as_in_a_shell():
    assert expand_shards("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_shards("s3://b/{x,y}.tar") == ["s3://b/x.tar", "s3://b/y.tar"]
    assert expand_shards(r"odd\{1..2\}.tar") == ["odd{1..2}.tar"]
    assert split_sources("a.tar::s3://b/c.tar::d.csv") == ["a.tar", "s3://b/c.tar", "d.csv"]


def test_wildcards_stand_for_the_files_there_are_by_name(tmp_path):
    for name in ("b.tar", "a.tar", "c.txt", "[d].tar"):
        (tmp_path / name).touch()
    found = expand_shards(f"{tmp_path}/?.tar")
    assert found == [f"{tmp_path}/a.tar", f"{tmp_path}/b.tar"]
    assert expand_shards(f"{tmp_path}/[d].tar") == [f"{tmp_path}/[d].tar"]
    with pytest.raises(ShardError, match=r"expected files that fit .*x\*.tar; got none"):
        expand_shards(f"{tmp_path}/x*.tar")


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("x{0..3.tar", "expected balanced braces"),
        ("pipe:curl https://x/y.tar", "pipe:"),
    ],
)
def test_a_pattern_that_cannot_be_read_is_a_sentence(pattern, sentence):
    with pytest.raises(ShardError, match=sentence):
        expand_shards(pattern)


def test_a_missing_shard_is_named(shards, tmp_path):
    with pytest.raises(ShardError, match=r"train-000003.tar: no such file"):
        source_of(f"{shards[0].parent}/train-{{000000..000003}}.tar", tmp_path / "cache")


def test_shards_without_a_sample_are_a_sentence_with_the_first_fault(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("a.txt", b"alone")])
    with pytest.raises(ShardError, match=r"got none in 1 shard\(s\), first .*x.tar; no image"):
        source_of(path, tmp_path / "cache")
