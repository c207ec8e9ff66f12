"""`clipfast shards check`: every fault is found, named and counted, and its place is right."""

import os
import shutil

import pytest
from shard_files import read_lines, write_tar


def pairs(*images):
    """Members of samples with captions."""
    members = {}
    for i, image in enumerate(images):
        members |= {f"{i:04d}.jpg": image, f"{i:04d}.txt": f"caption {i}".encode()}
    return members


@pytest.fixture
def good(tmp_path, photos):
    return write_tar(tmp_path / "good.tar", pairs(photos["large"], photos["progressive"]))


def test_shards_without_a_fault_exit_with_0(shards, good):
    code, out, _ = shards("check", good, "--decode")
    assert code == 0
    assert "2 whole samples in 1 shard" in out
    assert "no faults" in out


def test_each_kind_of_fault_is_found_with_its_place(shards, tmp_path, good, photos, damaged):
    whole = photos["large"]
    paths = [
        good,
        write_tar(tmp_path / "incomplete.tar", {"a.jpg": whole, "b.txt": b"alone"}),
        write_tar(tmp_path / "damaged.tar", pairs(*damaged.values(), photos["webp"])),
        write_tar(
            tmp_path / "captions.tar",
            {"a.jpg": whole, "a.txt": b"\xff\xfe", "b.jpg": whole, "b.json": b'{"label": 3}'},
        ),
        write_tar(tmp_path / "hostile.tar", {"../a.jpg": whole, "../a.txt": b"caption"}),
    ]
    cut = shutil.copy(good, tmp_path / "cut.tar")
    os.truncate(cut, good.stat().st_size // 2)
    (tmp_path / "no.tar").write_bytes(b"<html>404</html>" * 99)
    pattern = "::".join(map(str, [*paths, cut, tmp_path / "no.tar", tmp_path / "gone.tar"]))
    report = tmp_path / "report.jsonl"
    code, out, _ = shards("check", pattern, "--decode", "--report", report)
    assert code == 1
    found = {}
    for line in read_lines(report):
        name = os.path.basename(line["shard"])
        found.setdefault(name, []).append((line["key"], line["reason"]))
    assert set(found) == {
        *("incomplete.tar", "damaged.tar", "captions.tar", "hostile.tar", "cut.tar"),
        *("no.tar", "gone.tar"),
    }
    assert [key for key, _ in found["incomplete.tar"]] == ["a", "b"]
    assert [key for key, _ in found["damaged.tar"]] == [f"{i:04d}" for i in range(5)]
    assert [key for key, _ in found["captions.tar"]] == ["a", "b"]
    assert "UTF-8" in found["captions.tar"][0][1]
    assert "truncated" in found["cut.tar"][-1][1]
    assert "no tar file" in found["no.tar"][0][1]
    assert "no such file" in found["gone.tar"][0][1]
    assert f"{sum(map(len, found.values()))} faults" in out
    for kind in ("no image", "no caption", "truncated JPEG", "caption is not UTF-8"):
        assert kind in out


def test_without_decoding_only_the_tar_is_looked_at(shards, tmp_path, damaged):
    path = write_tar(tmp_path / "x.tar", pairs(damaged["inside"], damaged["gif"]))
    code, out, _ = shards("check", path)
    assert code == 0
    assert "images were not decoded" in out
    assert shards("check", path, "--decode")[0] == 1


def test_the_reported_offset_is_where_the_image_begins(shards, tmp_path, photos, damaged):
    path = write_tar(tmp_path / "x.tar", pairs(photos["small"], damaged["gif"]))
    shards("check", path, "--decode", "--report", tmp_path / "report.jsonl")
    (fault,) = read_lines(tmp_path / "report.jsonl")
    begin = fault["offset"]
    assert path.read_bytes()[begin : begin + len(damaged["gif"])] == damaged["gif"]


def test_faults_of_a_kind_are_counted_together_with_few_examples(shards, tmp_path, damaged):
    paths = [write_tar(tmp_path / f"{i}.tar", pairs(*[damaged["gif"]] * 7)) for i in range(3)]
    pattern = f"{tmp_path}/{{0..2}}.tar"
    code, out, _ = shards("check", pattern, "--decode", "--examples", 2, "--workers", 3)
    assert code == 1
    (row,) = [line for line in out.splitlines() if " 21 " in line and "JPEG, PNG" in line]
    assert row
    assert out.count("got GIF") == 2
    assert str(paths[0]) in out.replace("│\n", "")


def test_mistakes_in_the_pattern_are_sentences(shards):
    for pattern, sentence in (
        ("x{0..3.tar", "expected balanced braces; got 'x{0..3.tar'"),
        ("", "expected the path of at least one; got ''"),
    ):
        code, _, error = shards("check", pattern)
        assert code == 2
        assert sentence in error
