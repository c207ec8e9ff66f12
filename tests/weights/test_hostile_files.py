"""Reading weights never runs code from a file, and damage is one sentence."""

import json
import os
import pickle
import random
import shutil
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from clipfast.errors import UserError
from clipfast.weights.checkpoint import read_checkpoint
from clipfast.weights.reading import read_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),
    pytest.mark.filterwarnings("ignore:.torch.load. received a zip file"),
]


class Payload:
    """Unpickling it makes the file `flag`."""

    def __init__(self, flag):
        self.flag = flag

    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def test_the_payload_does_its_work_where_a_pickle_is_executed(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "flag")))
    assert (tmp_path / "flag").exists()


@pytest.fixture
def archive(tmp_path):
    """A small TorchScript archive."""
    path = tmp_path / "archive.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(3, 2)), path)
    return path


def with_record(archive, record, content, compression=zipfile.ZIP_STORED):
    """The archive with another record in place of its own."""
    changed = archive.with_name("changed.pt")
    with zipfile.ZipFile(archive) as source, zipfile.ZipFile(changed, "w") as target:
        for name in source.namelist():
            own = name != f"archive/{record}"
            target.writestr(
                name,
                source.read(name) if own else content,
                zipfile.ZIP_STORED if own else compression,
            )
    return changed


def checkpoint(payload, folder, archive):
    torch.save({"state_dict": {"a": torch.ones(1)}, "optimizer": payload}, folder / "a.pt")
    return folder / "a.pt"


def old_checkpoint(payload, folder, archive):
    content = {"a": payload}
    torch.save(content, folder / "a.pt", _use_new_zipfile_serialization=False)
    return folder / "a.pt"


def plain_pickle(payload, folder, archive):
    (folder / "a.bin").write_bytes(pickle.dumps(payload))
    return folder / "a.bin"


def archive_of_payload(payload, folder, archive):
    return with_record(archive, "data.pkl", pickle.dumps(payload, protocol=2))


def archive_of_payload_in_a_later_protocol(payload, folder, archive):
    return with_record(archive, "data.pkl", pickle.dumps({"a": [payload]}, protocol=5))


def huggingface_bin(payload, folder, archive):
    (folder / "config.json").write_text('{"model_type": "clip"}')
    torch.save({"logit_scale": payload}, folder / "pytorch_model.bin")
    return folder


def local_dir_bin(payload, folder, archive):
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    torch.save({"logit_scale": payload}, folder / "open_clip_pytorch_model.bin")
    return folder


def local_dir_archive(payload, folder, archive):
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}}))
    hostile = archive_of_payload(payload, folder, archive)
    shutil.move(hostile, folder / "open_clip_pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "write",
    [
        checkpoint,
        old_checkpoint,
        plain_pickle,
        archive_of_payload,
        archive_of_payload_in_a_later_protocol,
        huggingface_bin,
        local_dir_bin,
        local_dir_archive,
    ],
)
def test_a_pickle_with_code_is_refused_with_a_sentence_and_not_run(write, archive, tmp_path):
    flag = tmp_path / "flag"
    path = write(Payload(flag), tmp_path, archive)
    with pytest.raises(UserError, match="which only executing code|that only executing code") as e:
        read_weights(path)
    assert "\n" not in str(e.value)
    assert not flag.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"c__torch__\nos.system\n(S'touch FLAG'\ntR.",  # a name of the program's that is none
        b"c__torch__.a\nB\n}(S'a'\nK\x01ub.",  # a state for the class itself
        b"ctorch._utils\n_rebuild_tensor_v2\nN}(S'__code__'\nNu\x86b.",  # a function's code
        b"ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
        b"ctorch\nload\n(S'FLAG'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
    ],
)
def test_no_way_around_the_archives_reader_runs_code_or_changes_it(program, archive, tmp_path):
    flag = tmp_path / "flag"
    program = program.replace(b"FLAG", str(flag).encode())
    with pytest.raises(UserError):
        read_weights(with_record(archive, "data.pkl", b"\x80\x02" + program))
    assert not flag.exists()
    assert read_weights(archive).state_dict["weight"].shape == (2, 3)


def test_an_archives_program_and_constants_are_not_looked_at(archive, tmp_path):
    flag = tmp_path / "flag"
    hostile = with_record(archive, "constants.pkl", pickle.dumps(Payload(flag), protocol=2))
    assert read_weights(hostile).state_dict.keys() == {"weight", "bias"}
    assert not flag.exists()


def test_an_archive_is_no_checkpoint_to_resume_from(archive):
    with pytest.raises(UserError, match="expected a checkpoint; got a TorchScript archive"):
        read_checkpoint(archive)


def test_an_archive_gives_the_tensors_that_torch_gives(archive):
    theirs = torch.jit.load(archive).state_dict()
    ours = read_weights(archive).state_dict
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor)
        assert ours[name].dtype == tensor.dtype


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 12])
def test_a_tensor_that_reaches_beyond_its_bytes_is_damage(content, archive):
    with pytest.raises(UserError, match="a TorchScript archive that is cut short or damaged"):
        read_weights(with_record(archive, "data/0", content))


def test_a_compressed_record_is_refused_as_it_could_swell_without_bound(archive):
    bomb = with_record(archive, "data/0", bytes(10**6), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="a TorchScript archive that is cut short or damaged"):
        read_weights(bomb)


def safetensors(folder):
    state = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
    save_file(state, folder / "a.safetensors", {"format": "pt", "model_cfg": '{"embed_dim": 3}'})
    return folder / "a.safetensors"


@pytest.mark.parametrize("form", ["archive", "safetensors"])
def test_damaged_bytes_are_read_or_refused_but_never_raise_anything_else(form, archive, tmp_path):
    path = archive if form == "archive" else safetensors(tmp_path)
    whole, chance = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice([len(whole), chance.randrange(len(whole))])])
        try:
            read_weights(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
    assert refused > 100


@pytest.mark.parametrize("form", ["archive", "safetensors"])
def test_a_file_that_was_cut_short_is_refused_at_any_length(form, archive, tmp_path):
    path = archive if form == "archive" else safetensors(tmp_path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"^checkpoint {path}: .*cut short or damaged"):
            read_weights(path)


def test_a_missing_file_is_named(tmp_path):
    for name in ("a.pt", "a.safetensors", "a"):
        with pytest.raises(UserError, match=rf"^checkpoint {tmp_path / name}: no such file$"):
            read_weights(tmp_path / name)
