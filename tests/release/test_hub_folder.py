"""The wheel's kernels load through Hugging Face's `kernels` from a folder, without a network."""

import re
import sys

import pytest
from releasing import ROOT, run

pytestmark = pytest.mark.slow

LOADER = "kernels==0.17.2"


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    """In a folder of its own: other packages behave differently where it is installed."""
    folder = tmp_path_factory.mktemp("loader")
    install = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    run([*install, "--no-deps", "--target", folder, LOADER, "kernels-data"])
    return folder


@pytest.fixture(scope="module")
def hub_folder(release, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub") / "clipfast-kernels"
    run([sys.executable, ROOT / "kernels" / "hub_folder.py", release.wheel, folder])
    return folder


# As this environment's own, editable clipfast would lend what the folder lacks.
ALONE = "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f)]\n"
CODE = """
from pathlib import Path
import torch
from kernels import get_local_kernel
kernel = get_local_kernel(Path({folder!r}), backend={backend!r})
assert kernel.__file__.startswith({folder!r}), kernel.__file__
x, y = torch.randn(2, 48, 32)
loss = kernel.contrastive_loss(x.requires_grad_(), y, 10.0, backend="cpu")
loss.backward()
wanted = kernel.contrastive_loss(x, y, 10.0, backend="reference")
torch.testing.assert_close(loss, wanted)
print("backend", kernel.backends("contrastive_loss", x, y).auto)
"""


@pytest.mark.parametrize("backend", ["cpu", None])
def test_the_loader_takes_the_folder_offline_and_the_loss_runs(
    hub_folder, loader, tmp_path, backend
):
    code = ALONE + CODE.format(folder=str(hub_folder), backend=backend)
    offline = {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(loader),
        "PYTHONWARNINGS": "error::UserWarning",
    }
    said = run([sys.executable, "-c", code], cwd=tmp_path, **offline)
    assert re.search("^backend cpu$", said, re.MULTILINE), said
