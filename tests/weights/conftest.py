import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
import weight_peers


@pytest.fixture(scope="session", autouse=True)
def kinds_folder(tmp_path_factory):
    """A configuration file NAME.json for each kind of model, which open_clip knows by NAME too."""
    folder = tmp_path_factory.mktemp("kinds")
    weight_peers.register(folder)
    return folder


@pytest.fixture(scope="session")
def peers(kinds_folder):
    """One of open_clip's models of each kind."""
    torch.manual_seed(0)
    return {kind: weight_peers.open_clip_model(kind) for kind in weight_peers.KINDS}
