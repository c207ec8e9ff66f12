"""Every fault of a shard is listed, where it is and why, and what is whole beside it is used."""

import gzip
import os
import shutil
import subprocess
import tarfile

import pytest
import webdataset
from tars import keys_of, pair, pairs, scanned, source_of, write_tar

from clipfast.data.sources.image_files import LARGEST
from clipfast.data.sources.samples import Fault, Place
from clipfast.data.sources.tar_source import ShardError

BLOCK = 512


@pytest.fixture
def shard(tmp_path):
    return tmp_path / "x.tar"


def reasons(path):
    return [flaw.reason for flaw in scanned(path)[1]]


def test_a_fault_tells_shard_offset_key_and_reason(shard, tmp_path):
    write_tar(shard, [*pairs("a"), ("b.txt", b"no image"), *pairs("c")])
    source = source_of(shard, tmp_path)
    assert keys_of(source) == ["a", "c"]
    reason = "no image (jpg, png, jpeg, webp) next to txt"
    assert list(source.faults()) == [Fault(Place(str(shard), 5 * BLOCK, "b"), reason)]
    again = source_of(shard, tmp_path)
    assert list(again.faults()) == list(source.faults()), "from the index"


def test_keys_without_an_image_or_a_caption_are_left_out_and_listed(shard):
    write_tar(shard, [("a.jpg", b"1"), ("b.txt", b"2"), ("c.1.jpg", b"3"), ("c.txt", b"4")])
    keys, flaws = scanned(shard)
    assert keys == []
    assert [flaw[1:] for flaw in flaws] == [
        ("a", "no caption (txt or json) next to jpg"),
        ("b", "no image (jpg, png, jpeg, webp) next to txt"),
        ("c", "no image (jpg, png, jpeg, webp) next to 1.jpg, txt"),
    ]


def test_members_without_a_key_are_no_fault(shard):
    members = [("README", b"x"), ("._a.jpg", b"x"), ("folder/.DS_Store", b"x"), *pairs("a")]
    folder = tarfile.TarInfo("folder")
    folder.type = tarfile.DIRTYPE
    write_tar(shard, [(folder, b""), *members])
    assert scanned(shard) == (["a"], [])


def test_the_second_sample_of_a_key_is_left_out_and_listed(shard, tmp_path):
    write_tar(shard, [*pair("a", b"first"), *pairs("b"), *pair("a", b"second"), *pair("a", b"3rd")])
    source = source_of(shard, tmp_path)
    assert keys_of(source) == ["a", "b"]
    assert source.read(0).image == b"first"
    found = [(fault.place.key, fault.reason) for fault in source.faults()]
    assert found == [("a", "another sample of the shard has this key")] * 2


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/b.jpg", "is an absolute path"),
        ("/etc/passwd", "is an absolute path"),
        ("../b.jpg", "leads out of its folder"),
        ("a/../../b.jpg", "leads out of its folder"),
        ("b\x1b[2J.jpg", "has control characters"),
        ("b\n.jpg", "has control characters"),
        ("ü" * 499 + ".jpg", "has more than 1,000 bytes"),
        ("b/" * 600 + "b.jpg", "has more than 1,000 bytes"),
    ],
)
def test_a_hostile_name_is_left_out_and_listed(shard, tmp_path, name, reason):
    write_tar(shard, [*pairs("a"), (name, b"x"), ("z.jpg", b"x"), ("z.txt", b"y")])
    source = source_of(shard, tmp_path)
    assert keys_of(source) == ["a", "z"]
    (fault,) = source.faults()
    assert reason in fault.reason
    assert fault.place.key.isprintable()
    assert len(fault.place.key) <= 201


def test_a_name_of_a_thousand_bytes_and_dots_that_lead_nowhere_are_no_fault(shard):
    keys = ["ü" * 498, "b../c", "..d/e"]
    write_tar(shard, pairs(*keys))
    assert scanned(shard) == (keys, [])


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device or the like"),
        (tarfile.FIFOTYPE, "a device or the like"),
    ],
)
def test_what_only_poses_as_an_image_is_listed_once(shard, kind, phrase):
    link = tarfile.TarInfo("b.jpg")
    link.type, link.linkname = kind, "a.jpg"
    write_tar(shard, [*pairs("a"), (link, b""), ("b.txt", b"text"), *pairs("c")])
    keys, flaws = scanned(shard)
    assert keys == ["a", "c"]
    assert [flaw[1:] for flaw in flaws] == [("b.jpg", f"the member is {phrase}")]


@pytest.mark.parametrize("layout", ["gnu", "posix"])
def test_a_sparse_image_is_listed_and_what_follows_is_read(tmp_path, layout):
    for name, content in [*pairs("a"), *pairs("b"), *pairs("c")]:
        (tmp_path / name).write_bytes(content)
    with open(tmp_path / "b.jpg", "wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    names = ["a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "c.txt"]
    command = ["tar", "--sparse", f"--format={layout}", "-cf", "x.tar", *names]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "x.tar").stat().st_size < 1 << 20, "tar made it sparse"
    keys, flaws = scanned(tmp_path / "x.tar")
    assert keys == ["a", "c"]
    assert [flaw[1:] for flaw in flaws] == [("b.jpg", "the member is a sparse file")]


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_a_shard_cut_anywhere_keeps_its_whole_samples(tmp_path, layout):
    keys = ["a", "b" * 60 + "/" + "b" * 60, "c"]
    whole = write_tar(tmp_path / "whole.tar", pairs(*keys), format=layout)
    assert scanned(whole) == (keys, [])
    # A content ends where its block begins and some; the sizes here are below a block.
    with tarfile.open(whole) as tar:
        ends = [member.offset_data + member.size for member in tar if member.name.endswith("txt")]
        end = tar.offset
    for size in range(BLOCK, end + 1, 128):
        shutil.copy(whole, tmp_path / "cut.tar")
        os.truncate(tmp_path / "cut.tar", size)
        found, flaws = scanned(tmp_path / "cut.tar")
        assert found == [key for key, last in zip(keys, ends, strict=True) if last <= size]
        (flaw,) = flaws
        assert flaw.offset == size
        assert f"truncated at byte {size}" in flaw.reason


def test_a_truncated_shard_names_the_member_that_is_cut(shard):
    write_tar(shard, [*pairs("a"), *pair("b", b"x" * 5000)])
    os.truncate(shard, 4000)
    assert reasons(shard) == ["truncated at byte 4000: 'b.jpg' should end at byte 7560"]


def test_damage_in_the_middle_keeps_what_is_before_it(shard):
    at = 6  # between the image and the caption of b
    write_tar(shard, pairs("a", "b", "c"))
    content = bytearray(shard.read_bytes())
    content[at * BLOCK : (at + 1) * BLOCK] = b"\xa5" * BLOCK
    shard.write_bytes(content)
    assert scanned(shard)[0] == ["a"]
    assert reasons(shard) == [f"damaged at byte {at * BLOCK}: no tar header is there"]


def test_one_flipped_bit_of_a_header_is_seen(shard):
    write_tar(shard, pairs("a", "b"))
    content = bytearray(shard.read_bytes())
    content[4 * BLOCK + 3] ^= 1
    shard.write_bytes(content)
    assert scanned(shard)[0] == ["a"]
    assert reasons(shard) == [f"damaged at byte {4 * BLOCK}: no tar header is there"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"short", "no tar file, or a compressed one"),
        (b"this is no tar file " * 1000, "no tar file, or a compressed one"),
        (gzip.compress(bytes(range(256)) * 100), "no tar file, or a compressed one"),
    ],
)
def test_a_file_that_is_no_tar_is_a_shard_without_samples(tmp_path, content, reason):
    (tmp_path / "x-0.tar").write_bytes(content)
    write_tar(tmp_path / "x-1.tar", pairs("a"))
    source = source_of(tmp_path / "x-{0..1}.tar", tmp_path)
    assert source.counts.tolist() == [0, 1]
    assert [fault.reason for fault in source.faults()] == [reason]
    assert keys_of(source) == ["a"]
    with pytest.raises(ShardError, match=rf"got none in 1 shard\(s\), first .*x-0\.tar; {reason}"):
        source_of(tmp_path / "x-0.tar", tmp_path)


def test_an_archive_after_the_end_mark_is_not_lost_in_silence(shard, tmp_path):
    write_tar(shard, pairs("a"))
    shard.write_bytes(shard.read_bytes() + write_tar(tmp_path / "y.tar", pairs("b")).read_bytes())
    assert scanned(shard)[0] == ["a"]
    assert reasons(shard) == [f"more follows the end-of-archive mark at byte {4 * BLOCK}"]


def header(**fields):
    """A header with a size or a type that tarfile would not write."""
    block = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT))
    for begin, content in fields.values():
        block[begin : begin + len(content)] = content
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(
    "block",
    [
        header(size=(124, b"\xff" * 11 + b"\x00")),  # -256
        header(size=(124, b"-0000002000\0")),
        header(size=(124, b"\xff" * 10 + b"\x00\x00"), type=(156, b"x")),
        header(size=(124, b"\x80" + b"\xff" * 11)),  # 2 ** 88
        header(size=(124, b"77777777777\0"), type=(156, b"x")),
        header(size=(124, b"77777777777\0"), type=(156, b"L")),
        header(type=(156, b"x")) * 3000,
    ],
)
def test_a_hostile_size_ends_the_shard_and_not_the_run(shard, block):
    write_tar(shard, [*pairs("a"), ("b.txt", b"text")])
    content = shard.read_bytes()
    shard.write_bytes(content[: 4 * BLOCK] + block + content[4 * BLOCK :])
    keys, flaws = scanned(shard)
    assert keys == ["a"]
    assert len(flaws) == 1


def test_an_empty_image_is_listed_and_an_empty_caption_is_one(shard, tmp_path):
    write_tar(shard, [*pair("a", b""), *pair("b", caption=b"")])
    source = source_of(shard, tmp_path)
    assert source.read(0).captions == (b"",)
    assert [fault[0][2:] + fault[1:] for fault in source.faults()] == [("a", "the image is empty")]


@pytest.mark.parametrize("extension", ["jpg", "txt"])
def test_a_member_that_no_memory_should_hold_is_listed(shard, extension):
    large = tarfile.TarInfo(f"b.{extension}")
    large.size = LARGEST + 1
    rest = [member for member in pairs("b") if not member[0].endswith(extension)]
    with open(write_tar(shard, [*pairs("a"), *rest]), "r+b") as file:
        file.seek(6 * BLOCK)
        file.write(large.tobuf())
        file.truncate(7 * BLOCK + -(-large.size // BLOCK) * BLOCK + 2 * BLOCK)
    keys, flaws = scanned(shard)
    assert keys == ["a"]
    assert [flaw[1:] for flaw in flaws] == [("b", "expected at most 256.0 MB; got 256.0 MB")]


def test_a_thousand_faults_are_listed_and_the_others_counted(shard, tmp_path):
    lone = [(f"{i:05d}.txt", b"x") for i in range(1003)]
    source = source_of(write_tar(shard, [*lone, *pairs("a")]), tmp_path)
    *listed, last = source.faults()
    assert [fault.place.key for fault in listed] == [f"{i:05d}" for i in range(1000)]
    assert last.reason == "and 3 more flaws, which are not listed"


def test_samples_are_those_that_webdataset_finds(shard, tmp_path):
    members = [
        *pairs("./a", "b.b/c"), ("d.JPEG", b"4"), ("d.cls", b"7"), ("d.Txt", b"four"),
        ("e.json", b"{}"), ("e.png", b"5"), ("f/g.webp", b"6"), ("f/g.txt", b"six"),
        *pairs("h" * 150, "ordner/ü", "i" * 90 + "/" + "i" * 40),
    ]  # fmt: skip
    for layout in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        source = source_of(write_tar(shard, members, format=layout), tmp_path)
        theirs = list(webdataset.WebDataset([str(shard)], shardshuffle=False))
        ours = [source.read(i) for i in range(int(source.counts[0]))]
        assert [sample.place.key for sample in ours] == [sample["__key__"] for sample in theirs]
        for sample, other in zip(ours, theirs, strict=True):
            image = next(other[e] for e in ("jpg", "jpeg", "png", "webp") if e in other)
            assert sample.image == image
            assert sample.captions == (other["txt"] if "txt" in other else other["json"],)


def test_a_shard_that_webdataset_wrote_is_read(shard, tmp_path):
    with webdataset.TarWriter(str(shard)) as writer:
        for i in range(5):
            writer.write({"__key__": f"k{i}", "jpg": f"image {i}".encode(), "txt": f"text {i}"})
    source = source_of(shard, tmp_path)
    assert list(source.faults()) == []
    samples = [source.read(i) for i in range(5)]
    assert [(s.image, *s.captions) for s in samples] == [
        (f"image {i}".encode(), f"text {i}".encode()) for i in range(5)
    ]


def test_names_that_are_no_text_stay_apart_and_can_be_printed(shard, tmp_path):
    keys = [b"\xff\xfe", b"\xff\xfd"]
    names = [(key + b".jpg").decode("utf-8", "surrogateescape") for key in keys]
    members = [(n[:-3] + e, b"x") for n in names for e in ("jpg", "txt")]
    options = {"format": tarfile.GNU_FORMAT, "encoding": "utf-8", "errors": "surrogateescape"}
    found = keys_of(source_of(write_tar(shard, members, **options), tmp_path))
    assert found == [r"\xff\xfe", r"\xff\xfd"]
