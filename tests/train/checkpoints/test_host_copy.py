"""Copies for a writer: they stay, and what was shared stays shared."""

from collections import OrderedDict

import torch

from clipfast.train.checkpoints.host_copy import host_copy


def test_a_copy_stays_as_the_original_changes():
    original = {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 0.1}], "at": (1, 2)}
    copy = host_copy(original)
    original["state"][0]["step"] += 1
    original["groups"][0]["lr"] = 0.2
    assert copy == {
        "state": {0: {"step": torch.tensor(3.0)}},
        "groups": [{"lr": 0.1}],
        "at": (1, 2),
    }


def test_tied_weights_are_copied_and_so_written_once(tmp_path):
    weight = torch.ones(1000)
    copy = host_copy({"a": weight, "b": weight, "part": weight[:10]})
    assert copy["a"].data_ptr() == copy["b"].data_ptr() != weight.data_ptr()
    assert copy["part"].untyped_storage().nbytes() == 40
    torch.save(copy, tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 6000


def test_a_copied_state_dict_keeps_the_versions_of_its_layers():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    copy = host_copy(model.state_dict())
    assert isinstance(copy, OrderedDict)
    assert copy._metadata == model.state_dict()._metadata
    model.load_state_dict(copy)
