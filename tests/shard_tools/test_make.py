"""`clipfast shards make`: nothing usable is lost, nothing unusable is silent, nothing is halved."""

import csv
import io
import json
import os

import pytest
import webdataset
from PIL import Image
from shard_files import read_lines, read_tar

from clipfast.data.sources.storage import Storage
from clipfast.data.sources.tar_source import TarSource


@pytest.fixture
def folder(tmp_path, photos, damaged):
    """Four samples that are good, three with a fault."""
    folder = tmp_path / "photos"
    folder.mkdir()
    files = {
        "a.jpg": photos["large"],
        "a.txt": b"a temple",
        "b.png": photos["png"],
        "b.json": json.dumps({"captions": ["the temple", "der Tempel, größer"]}).encode(),
        "c.jpg": damaged["cut"],
        "c.txt": b"half a photo",
        "d.webp": photos["webp"],
        "d.txt": b"a flower",
        "e.jpg": photos["small"],
        "f.jpg": damaged["page"],
        "f.txt": b"not found",
        "g.jpg": photos["grey"],
        "g.txt": b"a grey temple",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_a_folder_becomes_shards_with_the_images_as_they_are(shards, folder, tmp_path, photos):
    code, out, _ = shards("make", folder, tmp_path / "out", "--samples-per-shard", 3)
    assert code == 0
    first, second = (read_tar(tmp_path / "out" / f"shard-00000{i}.tar") for i in range(2))
    assert list(first) == [
        *("000000000.jpg", "000000000.txt", "000000001.png", "000000001.json"),
        *("000000003.webp", "000000003.txt"),
    ]
    assert first["000000000.jpg"] == photos["large"]
    assert first["000000001.png"] == photos["png"]
    assert json.loads(first["000000001.json"]) == {"captions": ["the temple", "der Tempel, größer"]}
    assert second == {"000000005.jpg": photos["grey"], "000000005.txt": b"a grey temple"}
    assert "4 samples" in out
    assert "shard-{000000..000001}.tar" in out


def test_what_cannot_be_used_is_listed_and_counted(shards, folder, tmp_path):
    _, out, _ = shards("make", folder, tmp_path / "out")
    listed = {line["key"]: line["reason"] for line in read_lines(tmp_path / "out/rejected.jsonl")}
    assert set(listed) == {"c.jpg", "e.jpg", "f.jpg"}
    assert "truncated JPEG" in listed["c.jpg"]
    assert "caption" in listed["e.jpg"]
    assert "HTML" in listed["f.jpg"]
    assert "3 not used" in out


def test_webdataset_and_training_read_what_is_made(shards, folder, tmp_path):
    shards("make", folder, tmp_path / "out", "--prefix", "train")
    path = tmp_path / "out" / "train-000000.tar"
    theirs = list(webdataset.WebDataset([str(path)], shardshuffle=False))
    ours = TarSource(str(path), Storage(tmp_path / "cache"))
    assert [sample["__key__"] for sample in theirs] == [f"00000000{i}" for i in (0, 1, 3, 5)]
    assert [sample.get("txt") for sample in theirs] == [
        *(b"a temple", None, b"a flower", b"a grey temple")
    ]
    read = [ours.read(i) for i in range(4)]
    assert [s.captions[0] for s in read] == [s.get("txt") or s["json"] for s in theirs]
    assert read[0].image == theirs[0]["jpg"]


def test_a_table_becomes_shards_without_its_missing_images(shards, folder, tmp_path, photos):
    with open(tmp_path / "list.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["url", "text"])
        rows.writerow([folder / "a.jpg", "eins, zwei"])
        rows.writerow([folder / "gone.jpg", "drei"])
        rows.writerow([folder / "g.jpg", "vier"])
    flags = ["--csv-separator", ",", "--csv-img-key", "url", "--csv-caption-key", "text"]
    assert shards("make", tmp_path / "list.csv", tmp_path / "out", *flags)[0] == 0
    members = read_tar(tmp_path / "out" / "shard-000000.tar")
    assert list(members.values()) == [photos["large"], b"eins, zwei", photos["grey"], b"vier"]
    (rejected,) = read_lines(tmp_path / "out" / "rejected.jsonl")
    assert rejected["reason"] == "no such file"


def test_resizing_on_the_way_keeps_small_images_and_rejects_damaged_ones(
    shards, folder, tmp_path, photos, damaged
):
    (folder / "h.png").write_bytes(damaged["inside"])
    (folder / "h.txt").write_text("damaged past its header")
    shards("make", folder, tmp_path / "out", "--resize", 96)
    members = read_tar(tmp_path / "out" / "shard-000000.tar")
    images = [c for name, c in members.items() if not name.endswith((".txt", ".json"))]
    sizes = [Image.open(io.BytesIO(image)).size for image in images]
    assert sizes == [(128, 96), (144, 96), (90, 120), (144, 96)]
    assert members["000000003.webp"] == photos["webp"]
    assert "h.png" in {line["key"] for line in read_lines(tmp_path / "out/rejected.jsonl")}


def test_an_interrupted_run_goes_on_after_its_whole_shards(shards, folder, tmp_path):
    arguments = ["make", folder, tmp_path / "out", "--samples-per-shard", 1]
    shards(*arguments)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")}
    assert len(whole) == 4
    for name in ("shard-000002.tar", "shard-000003.tar"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out" / "shard-000002.tar.partial").write_bytes(b"half a shard")
    kept = (tmp_path / "out" / "shard-000001.tar").stat().st_mtime_ns
    code, out, _ = shards(*arguments)
    assert code == 0
    assert "4 samples" in out
    assert "3 not used" in out
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar*")} == whole
    assert (tmp_path / "out" / "shard-000001.tar").stat().st_mtime_ns == kept
    assert len(read_lines(tmp_path / "out" / "rejected.jsonl")) == 3


def test_a_finished_run_is_left_alone(shards, folder, tmp_path):
    shards("make", folder, tmp_path / "out")
    before = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()}
    code, out, _ = shards("make", folder, tmp_path / "out")
    assert code == 0
    assert "4 samples" in out
    after = {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "out").iterdir()}
    assert after == before


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--resize", 64], "expected a folder begun with resize 64; it was begun with None"),
        (["--prefix", "x"], "expected a folder begun with prefix x; it was begun with shard"),
    ],
)
def test_other_settings_do_not_go_on_in_the_same_folder(shards, folder, tmp_path, flags, sentence):
    shards("make", folder, tmp_path / "out")
    code, _, error = shards("make", folder, tmp_path / "out", *flags)
    assert code == 2
    assert sentence in error


def test_another_source_does_not_go_on_in_the_same_folder(shards, folder, tmp_path):
    shards("make", folder, tmp_path / "out")
    os.remove(folder / "a.jpg")
    code, _, error = shards("make", folder, tmp_path / "out")
    assert code == 2
    assert "expected a folder begun with samples 5; it was begun with 6" in error


def test_a_folder_that_holds_something_else_is_not_written_to(shards, folder, tmp_path):
    code, _, error = shards("make", folder, folder)
    assert code == 2
    assert "expected an empty folder" in error
    assert not list(folder.glob("*.tar"))


def test_nothing_usable_is_one_sentence_and_leaves_no_shard(shards, tmp_path, damaged):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(damaged["cut"])
    (folder / "a.txt").write_text("half")
    code, out, error = shards("make", folder, tmp_path / "out")
    assert code == 2
    assert error == "clipfast shards: expected a sample that can be used; got none\n"
    assert "1 not used" in out
    assert not list((tmp_path / "out").glob("*.tar*"))


@pytest.mark.parametrize(
    ("flag", "value", "wanted"),
    [
        ("--samples-per-shard", 0, "at least 1"),
        ("--quality", 101, "1 to 100"),
        ("--workers", 0, "at least 1"),
    ],
)
def test_a_number_out_of_range_is_one_sentence(shards, folder, tmp_path, flag, value, wanted):
    code, _, error = shards("make", folder, tmp_path / "out", flag, value)
    assert code == 2
    assert error == f"clipfast shards: {flag}: expected {wanted}; got {value}\n"
