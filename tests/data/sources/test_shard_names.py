"""Names of shards: what is a list of them, and what is refused before a file is opened."""

import os

import pytest

from clipfast.data.sources.shard_names import (
    ShardError,
    base_name,
    expand_shards,
    split_sources,
)


@pytest.mark.parametrize(
    ("pattern", "sources"),
    [
        ("a.tar", ["a.tar"]),
        ("s3://bucket/a.tar::gs://b/c.tar", ["s3://bucket/a.tar", "gs://b/c.tar"]),
        ("::a.tar::", ["a.tar"]),
        ("", []),
        ("http://[fe80::1]:80/a.tar::b.tar", ["http://[fe80::1]:80/a.tar", "b.tar"]),
        ("C:a.tar", ["C:a.tar"]),
    ],
)
def test_sources_are_split_at_double_colons_only(pattern, sources):
    assert split_sources(pattern) == sources


def test_file_urls_become_paths():
    assert expand_shards("file:///data/x-{0..1}.tar") == ["/data/x-0.tar", "/data/x-1.tar"]


@pytest.mark.parametrize("pattern", ["", "::"])
def test_no_shard_at_all_is_a_sentence(pattern):
    with pytest.raises(ShardError, match="expected the path of at least one"):
        expand_shards(pattern)


@pytest.mark.parametrize(
    "pattern", ["x-{0..99999999999999}.tar", "x-{0..9999}{0..9999}.tar", "{9" + "9" * 5000 + "..1}"]
)
def test_an_endless_list_is_refused_before_memory_is_full(pattern):
    with pytest.raises(ShardError, match="expected"):
        expand_shards(pattern)


@pytest.mark.parametrize("pattern", ["pipe:cat x.tar", "a.tar::pipe:cat x.tar", "{pipe:cat x,y}"])
def test_a_command_is_refused(pattern):
    with pytest.raises(ShardError, match="got a command"):
        expand_shards(pattern)


def test_a_folder_is_refused_with_what_it_holds(tmp_path):
    with pytest.raises(ShardError, match=r"expected the names of tars.*it holds none"):
        expand_shards(str(tmp_path))
    for name in ("b.tar", "a.tar", "c.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ShardError, match=r"it holds 2, first a\.tar"):
        expand_shards(f"file://{tmp_path}{os.sep}")


def test_a_base_name_has_no_query_and_a_path_may_have_one():
    assert base_name("https://host/folder/a.tar?signature=x/y") == "a.tar"
    assert base_name("folder/what?.tar") == "what?.tar"
