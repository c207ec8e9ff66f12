"""A faulty checkpoint is one sentence that names the file, never torch's advice or a traceback."""

import random
import tarfile

import pytest
import torch

from clipfast.errors import UserError
from clipfast.weights.checkpoint import read_checkpoint
from clipfast.weights.loading import load_checkpoint

STATE = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


def sentence_of(path):
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"checkpoint {path}: ")
    assert "\n" not in sentence
    assert "weights_only" not in sentence
    return sentence


@pytest.mark.parametrize("content", [b"", b"hello\nworld\n", b"\n", b"{}", b"PK\x03\x04", b"\x80"])
def test_a_file_that_is_no_checkpoint_is_one_sentence_without_torchs_advice(content, tmp_path):
    (tmp_path / "a.pt").write_bytes(content)
    sentence_of(tmp_path / "a.pt")


def test_a_tar_is_one_sentence_without_torchs_advice(tmp_path):
    (tmp_path / "caption.txt").write_text("a cat")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        file.add(tmp_path / "caption.txt", "0.txt")
    assert "not a file that torch.save wrote" in sentence_of(tmp_path / "a.tar")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_bytes_are_read_or_refused_but_never_raise_torchs_own_errors(zipped, tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"epoch": 1, "state_dict": STATE}, path, _use_new_zipfile_serialization=zipped)
    whole, chance = path.read_bytes(), random.Random(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(whole), chance.randrange(len(whole))])])
        try:
            read_checkpoint(path)
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (torch.ones(2), "expected a dict; got Tensor"),
        ({"state_dict": 3}, "state_dict: expected a dict of tensors; got int"),
        ({"state_dict": None}, "state_dict: expected a dict of tensors; got NoneType"),
        ({"state_dict": {"bias": "x"}}, "tensor under each name; got str under 'bias'"),
        ({"state_dict": {7: torch.ones(2)}}, "tensor under each name; got Tensor under 7"),
        ({"bias": 1.0}, "tensor under each name; got float under 'bias'"),
        ({"state_dict": STATE, "epoch": "3"}, "epoch: expected an integer of at least 0; got '3'"),
        ({"state_dict": STATE, "epoch": -1}, "epoch: expected an integer of at least 0; got -1"),
        ({"state_dict": STATE, "epoch": True}, "epoch: expected an integer .*; got True"),
        ({"state_dict": STATE, "epoch": None}, "epoch: expected an integer .*; got None"),
        ({"state_dict": STATE, "optimizer": [1]}, "optimizer: expected a dict; got list"),
        ({"state_dict": STATE, "optimizer": None}, "optimizer: expected a dict; got NoneType"),
    ],
)
def test_content_of_another_form_is_named_with_what_was_expected(content, sentence, tmp_path):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(UserError, match=rf"a\.pt: .*{sentence}$"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_bare_and_a_data_parallel_state_dict_load(tmp_path):
    model = torch.nn.Linear(3, 2)
    for content in (STATE, {"state_dict": {f"module.{n}": t for n, t in STATE.items()}}):
        torch.save(content, tmp_path / "a.pt")
        load_checkpoint(model, tmp_path / "a.pt")
        assert torch.equal(model.weight, STATE["weight"])
        torch.nn.init.zeros_(model.weight)
