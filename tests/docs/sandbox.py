"""A folder with everything that the documentation's commands name, all of it real and small."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image
from sklearn.datasets import load_digits

from clipfast import create_model, save_checkpoint
from clipfast.data.sources.shard_writer import ShardWriter

STAND_INS = Path(__file__).with_name("stand_ins.py")
STOOD_IN = ("clipfast", "python", "torchrun", "srun", "scontrol", "scancel", "pip", "make")
MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
SAMPLES = 8  # of a shard
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def build(folder: Path) -> None:
    """Data of every form, a run to evaluate, weights, and the stand-ins that PATH finds first."""
    digits = _digits()
    (folder / "small.json").write_text(json.dumps(MODEL))
    (folder / "my-bert.json").write_text(json.dumps(MODEL))
    _shards(folder / "shards", digits)
    _tables(folder, digits)
    _evaluation_sets(folder, digits)
    weights = create_model("ViT-B-32").state_dict()
    save_checkpoint(folder / "epoch_32.pt", {"epoch": 32, "name": "big", "state_dict": weights})
    programs = folder / "programs"
    programs.mkdir()
    for name in STOOD_IN:
        program = programs / name
        program.write_text(f"#!{sys.executable}\n{STAND_INS.read_text()}")
        program.chmod(program.stat().st_mode | stat.S_IEXEC)
    pattern = "shards/train-{000000..000003}.tar"
    run(f"clipfast train --train-data '{pattern}' --name first --save-frequency 1", folder)


def copy(folder: Path, to: Path) -> Path:
    """For one page: what a command writes, no other page finds."""
    shutil.copytree(folder, to, copy_function=os.link, dirs_exist_ok=True)
    return to


def run(script: str, folder: Path) -> str:
    """What a shell script printed.

    Raises:
        AssertionError: it failed; with its commands and the end of what they printed.
    """
    root = Path(__file__).parents[2]
    environment = os.environ | {
        "PATH": f"{folder / 'programs'}:{os.environ['PATH']}",
        "DOCS_SANDBOX": str(folder),
        "DOCS_REPOSITORY": str(root),
        "HOME": str(folder),
        "COLUMNS": "120",
    }
    done = subprocess.run(
        ["bash", "-xeuo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"exit code {done.returncode}:\n{script}\n…{done.stdout[-3000:]}"
    return done.stdout


def _digits() -> list[tuple[bytes, str, int]]:
    """JPEG, caption and class of handwritten ones."""
    found = load_digits()
    rows = []
    for image, label in zip(found.images[:320], found.target[:320], strict=True):
        picture = Image.fromarray(np.uint8(image * 15.9)).resize((64, 64)).convert("RGB")
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        rows.append((buffer.getvalue(), f"a handwritten {WORDS[label]}", int(label)))
    return rows


def _shards(folder: Path, digits: list[tuple[bytes, str, int]]) -> None:
    """Of eight pairs each; a hundred names for the same few."""
    folder.mkdir()
    with ShardWriter(folder, "made", samples_per_shard=SAMPLES) as writer:
        for image, caption, _ in digits[: 4 * SAMPLES]:
            writer.write(image, caption)
    names = [f"train-{number:06d}" for number in range(100)]
    names += [f"val-{number:02d}" for number in range(4)]
    for number, name in enumerate(names):
        os.link(writer.shards[number % 4], folder / f"{name}.tar")
    others = folder.parent / "a"
    others.mkdir()
    for number in range(10):
        os.link(writer.shards[number % 4], others / f"{number:02d}.tar")
    for shard in writer.shards:
        Path(shard).unlink()


def _tables(folder: Path, digits: list[tuple[bytes, str, int]]) -> None:
    """A folder of images with captions, and CSV and Parquet that name them."""
    images = folder / "folder"
    images.mkdir()
    rows = []
    for number, (image, caption, _) in enumerate(digits[:24]):
        (images / f"{number:03d}.jpg").write_bytes(image)
        (images / f"{number:03d}.txt").write_text(caption)
        rows.append((f"folder/{number:03d}.jpg", caption))
    with (folder / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "text"), *rows])
    with (folder / "b.csv").open("w", newline="") as file:  # open_clip's default columns
        csv.writer(file, delimiter="\t").writerows([("filepath", "title"), *rows])
    paths, captions = zip(*rows, strict=True)
    for number in range(8):
        table = pa.table({"image": paths[number::8], "caption": captions[number::8]})
        pa.parquet.write_table(table, folder / f"pairs-{number:02d}.parquet")


def _evaluation_sets(folder: Path, digits: list[tuple[bytes, str, int]]) -> None:
    """MNIST's four files, a folder of classes, and pairs in Karpathy's form."""
    raw = folder / "datasets" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split, rows in (("t10k", digits[:40]), ("train", digits[40:])):
        images = [Image.open(io.BytesIO(image)).convert("L").resize((28, 28)) for image, *_ in rows]
        _write_idx(raw / f"{split}-images-idx3-ubyte", np.stack([np.asarray(i) for i in images]))
        _write_idx(raw / f"{split}-labels-idx1-ubyte", np.array([r[2] for r in rows], np.uint8))
    for number, (image, _, label) in enumerate(digits[:30]):
        where = folder / "birds" / ("robin", "wren", "heron")[label % 3]
        where.mkdir(parents=True, exist_ok=True)
        (where / f"{number}.jpg").write_bytes(image)
    entries = [
        {
            "filename": f"{number:03d}.jpg",
            "filepath": "folder",
            "split": "test",
            "sentences": [{"raw": f"{digits[number][1]}, number {k}"} for k in range(5)],
        }
        for number in range(24)
    ]
    (folder / "dataset_flickr30k.json").write_text(json.dumps({"images": entries}))


def _write_idx(path: Path, array: np.ndarray) -> None:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(struct.pack(">I", 0x800 + array.ndim) + sizes + array.tobytes())
