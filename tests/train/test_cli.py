"""The command line: every mistake is one sentence on stderr, exit code 2, and no traceback."""

import os
import shutil
import subprocess
import sys

import fake_ops
import pytest
from clipfast_kernels import dispatch, verification

from clipfast import doctor
from clipfast.cli import main


@pytest.fixture
def flags(digit_shards, tiny_model, tmp_path):
    return {
        "--train-data": digit_shards.train_pattern,
        "--model": tiny_model,
        "--batch-size": "16",
        "--epochs": "1",
        "--workers": "1",
        "--precision": "fp32",
        "--logs": str(tmp_path / "logs"),
        "--name": "a",
    }


def words(flags):
    return [word for pair in flags.items() for word in pair]


def failure(capsys, *arguments):
    """The one sentence that the command prints before it returns 2."""
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert "Traceback" not in lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("flag", "value", "sentence"),
    [
        (
            "--model",
            "ViT-Z-1",
            "clipfast train: model: expected a .json file or one of RN101, RN50",
        ),
        ("--train-data", "nowhere/{0..3}.tar", "clipfast train: shard nowhere/0.tar: no such file"),
        ("--batch-size", "0", "clipfast train: --batch-size: expected at least 1; got 0"),
        ("--device", "meta", "clipfast train: --device: expected cpu or cuda; got 'meta'"),
        ("--device", "tpu!", "clipfast train: --device: expected cpu or cuda; got 'tpu!'"),
        ("--resume", "none.pt", "clipfast train: checkpoint none.pt: no such file"),
        ("--pretrained", "none.pt", "clipfast train: checkpoint none.pt: no such file"),
        ("--logs", "/proc/nothing", "clipfast train: /proc/nothing"),
    ],
)
def test_a_mistake_in_a_flag(flags, capsys, flag, value, sentence):
    assert sentence in failure(capsys, "train", *words(flags | {flag: value}))


def test_an_unknown_backend_is_named_before_anything_is_written(flags, capsys, tmp_path):
    sentence = failure(capsys, "train", *words(flags | {"--backend": "fast"}))
    assert "backend: expected one of auto, cpu, torch, triton, reference" in sentence
    assert not (tmp_path / "logs").exists()


def test_a_run_is_not_overwritten(flags, capsys, tmp_path):
    (tmp_path / "logs" / "a").mkdir(parents=True)
    (tmp_path / "logs" / "a" / "out.log").write_text("precious")
    assert "already holds a run" in failure(capsys, "train", *words(flags))
    assert (tmp_path / "logs" / "a" / "out.log").read_text() == "precious"


def test_a_shard_that_holds_nothing_whole(flags, capsys, tmp_path):
    (tmp_path / "cut.tar").write_bytes(b"no tar")
    sentence = failure(capsys, "train", *words(flags | {"--train-data": str(tmp_path / "cut.tar")}))
    assert "cut.tar" in sentence


def test_a_faulty_model_file(flags, capsys, tmp_path):
    for content, expected in (
        ("{", "expected a JSON model configuration"),
        ("{}", "expected the fields embed_dim, vision_cfg and text_cfg"),
        (
            '{"embed_dim": 8, "vision_cfg": {"depth": 3}, "text_cfg": {}}',
            "got depth",
        ),
    ):
        (tmp_path / "model.json").write_text(content)
        sentence = failure(
            capsys, "train", *words(flags | {"--model": str(tmp_path / "model.json")})
        )
        assert expected in sentence


def test_a_full_disk_is_a_sentence_and_leaves_no_half_checkpoint(flags, capsys, tmp_path):
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs to mount a small tmpfs")
    small = tmp_path / "small"
    small.mkdir()
    if os.system(f"mount -t tmpfs -o size=2m tmpfs {small} 2>/dev/null"):
        pytest.skip("mounting is not allowed here")
    try:
        arguments = ["train", *words(flags | {"--logs": str(small)})]
        assert main(arguments) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert not list((small / "a" / "checkpoints").iterdir())
    finally:
        os.system(f"umount {small}")


def test_unknown_commands_are_listed_with_the_known_ones(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fly"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "demo" in error
    assert "doctor" in error


def test_doctor_prints_every_part_and_backend_and_exits_0(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for part in ("torch", "Triton", "CUDA", "DALI", "DeepSpeed", "flash-attn", "apex"):
        assert part in printed
    for backend in ("cpu", "reference", "triton"):
        assert backend in printed


def test_doctor_verifies_and_tells_what_is_wrong_by_its_exit_code(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")  # no sentence is broken between two lines
    for names, code in (("reference,quick,torch", 0), ("reference,torch,wrong,dying", 1)):
        op = fake_ops.fake_op(names.split(","))
        for module in (dispatch, verification, doctor):
            monkeypatch.setattr(module, "OPS", {"doubled": lambda op=op: op})
        monkeypatch.setattr(verification, "CHILD", [fake_ops.__file__, names])
        assert main(["doctor", "--verify"]) == code
        printed = capsys.readouterr().out
        assert "verified on" in printed
        assert "measurements; these times do not change it" in printed
        assert f"Kept in {tmp_path}" in printed
        for name in names.split(",")[1:]:
            assert name in printed
    assert "wrong: " in printed
    assert "signal 11" in printed


def test_an_unquoted_pattern_of_shards_is_told_from_an_unknown_flag(flags, capsys):
    shell = ["--train-data", "a-0.tar", "a-1.tar", "a-2.tar"]
    said = failure(capsys, "train", *shell, *words(flags)[2:])
    assert "expected one pattern, in quotes; got a-1.tar as a second word" in said


@pytest.mark.parametrize(
    "command", [["convert", "--help"], ["eval", "--list"], ["bench", "compare", "--help"]]
)
def test_output_that_nobody_reads_on_is_no_fault(command):
    buffered = {name: text for name, text in os.environ.items() if name != "PYTHONUNBUFFERED"}
    words = [sys.executable, "-m", "clipfast", *command]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(words, stdout=write, stderr=subprocess.PIPE, env=buffered)
    os.close(write)
    assert done.stderr == b""
