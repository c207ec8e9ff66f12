"""An index is made once, serves every later start, and never tells of another shard."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from servers import HttpServer
from tars import keys_of, pair, pairs, source_of, write_tar

from clipfast.data.sources.samples import UnusableError
from clipfast.data.sources.storage import Patience, Storage
from clipfast.data.sources.tar_index import Indexes, make_index, read_index
from clipfast.data.sources.tar_scan import scan
from clipfast.data.sources.tar_source import TarSource


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "x.tar", pairs("a", "b/long name", "c"))


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def index_of(shard):
    return shard.with_name(f"{shard.name}.clipfast-index")


def made_again(shard, cache):
    """Whether a start writes the index, which the next one would then not."""
    before = index_of(shard).stat()
    source_of(shard, cache)
    after = index_of(shard).stat()
    return (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns)


def test_an_index_is_made_once(shard, cache):
    source_of(shard, cache)
    assert not made_again(shard, cache)
    assert keys_of(source_of(shard, cache)) == ["a", "b/long name", "c"]
    assert sorted(file.name for file in shard.parent.iterdir()) == ["x.tar", "x.tar.clipfast-index"]


def test_records_are_those_of_the_scan_after_reading_them_back(shard, cache):
    indexes = Indexes(Storage(cache))
    identity = indexes.storage.identity(str(shard))
    with open(shard, "rb") as file:
        made = make_index(scan(file), identity)
    indexes.get(str(shard), identity)
    found = read_index(index_of(shard), identity)
    assert found.records.dtype == made.records.dtype
    np.testing.assert_array_equal(found.records, made.records)
    assert (found.identity, found.crc, found.flaws) == (made.identity, made.crc, made.flaws)


def test_a_shard_that_changes_is_indexed_anew(shard, cache):
    source_of(shard, cache)
    write_tar(shard, pairs("d"))
    assert keys_of(source_of(shard, cache)) == ["d"]


def test_a_shard_of_the_same_size_and_another_time_is_indexed_anew(shard, cache):
    source_of(shard, cache)
    size = shard.stat().st_size
    write_tar(shard, pairs("d", "e/long name", "f"))
    assert shard.stat().st_size == size
    os.utime(shard, ns=(0, 12345))
    assert keys_of(source_of(shard, cache)) == ["d", "e/long name", "f"]


def test_a_shard_that_changes_or_goes_before_it_is_indexed_has_no_index(shard, cache):
    indexes = Indexes(Storage(cache))
    identity = indexes.storage.identity(str(shard))
    write_tar(shard, pairs("d"))
    with pytest.raises(UnusableError, match="the shard has changed"):
        indexes.get(str(shard), identity)
    shard.unlink()
    with pytest.raises(UnusableError, match="the shard has gone"):
        indexes.get(str(shard), identity)
    assert list(shard.parent.iterdir()) == []


def damaged_contents(content):
    length = 8 + int.from_bytes(content[:8], "little")
    flipped = bytearray(content)
    flipped[length] ^= 1
    version = content.replace(b'"version": 1,', b'"version": 0,')
    return {
        "empty": b"",
        "half a length": content[:5],
        "half a header": content[: length // 2],
        "cut": content[:-3],
        "longer": content + b"x",
        "no JSON": b"x" * len(content),
        "a list": (2).to_bytes(8, "little") + b"[]",
        "an endless header": b"\xff" * 8 + content[8:],
        "a flipped bit": bytes(flipped),
        "another version": version,
    }


KINDS = list(damaged_contents(bytes(100)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_index_is_made_anew(shard, cache, kind):
    source_of(shard, cache)
    whole = index_of(shard).read_bytes()
    damaged = damaged_contents(whole)[kind]
    assert damaged != whole
    index_of(shard).write_bytes(damaged)
    assert keys_of(source_of(shard, cache)) == ["a", "b/long name", "c"]
    assert index_of(shard).read_bytes() == whole


def test_an_index_is_mapped_and_not_read(shard, cache):
    source_of(shard, cache)
    source = source_of(shard, cache)
    source.read(0)
    with open("/proc/self/maps") as maps:
        assert str(index_of(shard)) in maps.read()


def test_an_index_that_cannot_be_beside_its_shard_is_in_the_cache(shard, cache):
    index_of(shard).mkdir()
    assert keys_of(source_of(shard, cache)) == ["a", "b/long name", "c"]
    (kept,) = (cache / "indexes").iterdir()
    inode = kept.stat().st_ino
    assert keys_of(source_of(shard, cache)) == ["a", "b/long name", "c"]
    assert kept.stat().st_ino == inode, "found there"
    assert list(shard.parent.glob("*.partial")) == []


def test_shards_of_one_name_have_an_index_each_in_the_cache(tmp_path, cache):
    for key in "ab":
        (tmp_path / key).mkdir()
        shard = write_tar(tmp_path / key / "x.tar", pairs(key))
        index_of(shard).mkdir()
        os.utime(shard, ns=(0, 0))
    for key in "abab":
        assert keys_of(source_of(tmp_path / key / "x.tar", cache)) == [key]


def test_without_a_folder_to_write_to_shards_are_read_all_the_same(shard, cache):
    index_of(shard).mkdir()
    cache.write_bytes(b"a file, so no folder can be here")
    source = source_of(shard, cache)
    assert keys_of(source) == ["a", "b/long name", "c"]
    assert list(source.faults()) == []


START = """
import sys
from pathlib import Path
from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource
sys.stdin.readline()
source = TarSource(sys.argv[1], Storage(Path(sys.argv[2])))
keys = [source.read(i).place.key for i in range(int(source.counts.sum()))]
print(source.fingerprint, *keys)
"""


def test_processes_may_index_at_once(tmp_path, cache):
    keys = [f"{shard}/{i}" for shard in range(6) for i in range(200)]
    for shard in range(6):
        write_tar(tmp_path / f"x-{shard}.tar", pairs(*keys[shard * 200 : (shard + 1) * 200]))
    command = [sys.executable, "-c", START, f"{tmp_path}/x-{{0..5}}.tar", str(cache)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    printed = {process.communicate()[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 3
    (line,) = printed
    assert line.split()[1:] == keys
    names = [f"x-{i}.tar{suffix}" for i in range(6) for suffix in ("", ".clipfast-index")]
    found = sorted(file.name for file in tmp_path.iterdir())
    assert found == sorted([*names, "clipfast-manifest.json"])


@pytest.fixture
def server(tmp_path):
    """Two shards; the first has its index beside it, made where the shard had another time."""
    made = write_tar(tmp_path / "made.tar", pairs("a", "b"))
    source_of(made, tmp_path / "elsewhere")
    files = {
        "x-0.tar": made.read_bytes(),
        "x-0.tar.clipfast-index": index_of(made).read_bytes(),
        "x-1.tar": write_tar(tmp_path / "other.tar", [*pairs("c"), ("d.txt", b"x")]).read_bytes(),
    }
    with HttpServer(files) as running:
        yield running


def remote_source(server, cache, name):
    return TarSource(server.url(name), Storage(cache, patience=Patience(1, 0.01, 30)))


def test_a_remote_shard_with_an_index_is_fetched_when_it_is_read(server, cache):
    source = remote_source(server, cache, "x-{0..1}.tar")
    assert source.counts.tolist() == [2, 1]
    assert server.gets["x-0.tar"] == 0
    assert server.gets["x-1.tar"] == 1
    assert keys_of(source) == ["a", "b", "c"]
    assert server.gets["x-0.tar"] == 1
    assert source.place(2).shard == server.url("x-1.tar")


def test_a_second_run_on_remote_shards_fetches_nothing(server, cache):
    keys_of(remote_source(server, cache, "x-{0..1}.tar"))
    before = dict(server.gets)
    source = remote_source(server, cache, "x-{0..1}.tar")
    assert keys_of(source) == ["a", "b", "c"]
    assert len(list(source.faults())) == 1
    assert dict(server.gets) == before


def test_an_index_beside_a_remote_shard_of_another_size_is_not_taken(server, cache, tmp_path):
    server.files["x-0.tar"] = write_tar(tmp_path / "n.tar", pairs(*"efghijklmnop")).read_bytes()
    assert keys_of(remote_source(server, cache, "x-0.tar")) == list("efghijklmnop")


def test_a_remote_shard_that_goes_costs_its_samples_only(server, cache):
    source = remote_source(server, cache, "x-{0..1}.tar")
    del server.files["x-1.tar"]
    for fetched in (cache / "files").iterdir():
        fetched.unlink()
    for _ in range(3):
        with pytest.raises(UnusableError, match="the shard cannot be had: .*no such file") as found:
            source.read(2)
        assert found.value.place.key == "c"
    assert source.read(1).captions == (b"caption b",)
    assert server.gets["x-1.tar"] <= 2, "once to index it, and once more"


def test_remote_shards_and_copies_of_them_have_the_same_fingerprint(server, cache, tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    for i in range(2):
        (folder / f"x-{i}.tar").write_bytes(server.files[f"x-{i}.tar"])
    copies = source_of(folder / "x-{0..1}.tar", cache)
    assert remote_source(server, cache, "x-{0..1}.tar?a=1").fingerprint == copies.fingerprint
    shutil.copytree(folder, tmp_path / "again")
    assert source_of(tmp_path / "again" / "x-{0..1}.tar", cache).fingerprint == copies.fingerprint


def test_what_is_indexed_tells_samples_apart(tmp_path, cache):
    prints = {
        source_of(write_tar(tmp_path / name, members), cache).fingerprint
        for name, members in [
            ("x.tar", pairs("a", "b")),
            ("y.tar", pairs("a", "b")),
            ("x.tar", pairs("b", "a")),
            ("x.tar", [*pairs("a"), *pair("b", b"image")]),
        ]
    }
    assert len(prints) == 4
