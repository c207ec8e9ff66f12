"""A manifest spares a start the indexes, and is believed of unchanged shards only."""

import json
import os
import shutil

import pytest
from tars import keys_of, pairs, source_of, write_tar

from clipfast.data.sources.tar_source import ShardError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    for key in "abc":
        write_tar(folder / f"{key}.tar", [*pairs(key), ("lone.txt", b"x")])
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def start(folder, cache, names="{a,b,c}"):
    return source_of(folder / f"{names}.tar", cache)


def entries(folder):
    return json.loads((folder / "clipfast-manifest.json").read_text())["shards"]


def test_it_tells_of_each_shard_what_its_index_does(folder, cache):
    source = start(folder, cache)
    for name, entry in entries(folder).items():
        stat = (folder / name).stat()
        assert (entry["bytes"], entry["stamp"]) == (stat.st_size, str(stat.st_mtime_ns))
        assert (entry["samples"], entry["flaws"]) == (1, 1)
    assert list(entries(folder)) == ["a.tar", "b.tar", "c.tar"]
    again = start(folder, cache)
    assert again.fingerprint == source.fingerprint
    assert list(again.faults()) == list(source.faults())
    assert len(list(again.faults())) == 3


def test_a_single_shard_needs_none(folder, cache):
    start(folder, cache, "a")
    assert not (folder / "clipfast-manifest.json").exists()


def test_a_later_source_adds_to_it(folder, cache):
    start(folder, cache, "{a,b}")
    start(folder, cache, "{b,c}")
    assert sorted(entries(folder)) == ["a.tar", "b.tar", "c.tar"]


def test_a_shard_that_changed_is_looked_at_again(folder, cache):
    start(folder, cache)
    write_tar(folder / "b.tar", pairs("d", "e"))
    source = start(folder, cache)
    assert source.counts.tolist() == [1, 2, 1]
    assert keys_of(source) == ["a", "d", "e", "c"]
    assert entries(folder)["b.tar"]["samples"] == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no JSON",
        b"[]",
        b'{"version": 1, "shards": []}',
        b'{"version": 1, "shards": {"a.tar": 3, "b.tar": {}}}',
        b'{"version": 0, "shards": {}}',
    ],
)
def test_a_damaged_one_is_made_anew(folder, cache, content):
    start(folder, cache)
    whole = entries(folder)
    (folder / "clipfast-manifest.json").write_bytes(content)
    assert start(folder, cache).counts.tolist() == [1, 1, 1]
    assert entries(folder) == whole


def test_one_that_lies_about_a_shard_gives_no_wrong_sample(folder, cache):
    start(folder, cache)
    lying = {"version": 1, "shards": entries(folder)}
    lying["shards"]["b.tar"]["samples"] = 5
    (folder / "clipfast-manifest.json").write_text(json.dumps(lying))
    source = start(folder, cache)
    assert source.counts.tolist() == [1, 5, 1]
    for number in range(1, 6):
        with pytest.raises(ValueError, match="changed since it was indexed"):
            source.read(number)
    assert source.read(6).place.key == "c"


def test_where_the_folder_cannot_be_written_it_is_in_the_cache(folder, cache):
    (folder / "clipfast-manifest.json").mkdir()
    for key in "abc":
        (folder / f"{key}.tar.clipfast-index").mkdir()
    start(folder, cache)
    kept = list((cache / "indexes").iterdir())
    assert len(kept) == 4
    for file in kept:
        if file.name.endswith("-index"):
            file.unlink()
    assert start(folder, cache).counts.tolist() == [1, 1, 1]
    assert len(list((cache / "indexes").iterdir())) == 1, "no index was needed"


def test_shards_of_several_folders_have_one_each(folder, cache, tmp_path):
    shutil.copytree(folder, tmp_path / "more")
    names = f"{tmp_path}/{{shards,more}}/{{a,b}}.tar"
    assert keys_of(source_of(names, cache)) == ["a", "b", "a", "b"]
    assert sorted(entries(folder)) == sorted(entries(tmp_path / "more")) == ["a.tar", "b.tar"]


def test_shards_of_the_current_folder_have_theirs_there(folder, cache, monkeypatch):
    monkeypatch.chdir(folder)
    assert keys_of(source_of("{a,b}.tar", cache)) == ["a", "b"]
    assert sorted(entries(folder)) == ["a.tar", "b.tar"]


def test_a_shard_named_twice_counts_twice(folder, cache):
    assert keys_of(start(folder, cache, "{a,b,a}")) == ["a", "b", "a"]


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_start_names_the_shard_that_cannot_be_had(folder, cache, kind):
    start(folder, cache)
    os.remove(folder / "b.tar")
    if kind == "folder":
        (folder / "b.tar").mkdir()
    with pytest.raises(ShardError, match=r"^shard /.*/b\.tar: "):
        start(folder, cache)


def test_nothing_is_printed_where_nobody_looks(folder, cache, capfd):
    for i in range(10):
        write_tar(folder / f"{i}.tar", pairs("a"))
    start(folder, cache, "{0..9}")
    assert capfd.readouterr() == ("", "")
