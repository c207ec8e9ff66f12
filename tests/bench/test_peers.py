"""Peers: each says why it does not serve, and names are not taken for the thing."""

import inspect
import sys

import pytest
import torch
from clipfast_bench import peers

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
FUNCTIONS = [
    function
    for name, function in inspect.getmembers(peers, inspect.isfunction)
    if function.__module__ == peers.__name__ and not name.startswith("_")
]


@pytest.mark.parametrize("serves", FUNCTIONS, ids=lambda function: function.__name__)
@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_peer_serves_or_says_why_not(serves, device):
    reason = serves(device)
    assert isinstance(reason, str)
    assert "\n" not in reason


def test_peers_of_every_kind_are_known():
    names = {function.__name__ for function in FUNCTIONS}
    assert names >= {
        *("torch_eager", "torch_compile", "sdpa", "flash_attn", "apex", "open_clip"),
        *("transformers", "memeff", "siglip_kernel", "liger", "inf_cl", "dali", "webdataset"),
        "open_clip_train",
    }


def install(folder, monkeypatch, *files):
    for file in files:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    monkeypatch.syspath_prepend(folder)
    for name in [n for n in sys.modules if n.partition(".")[0] == "apex"]:
        monkeypatch.delitem(sys.modules, name)


def test_the_apex_of_pypi_is_not_nvidias(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "apex/__init__.py")
    assert "PyPI's project of that name, not NVIDIA's" in peers.apex(CUDA)


def test_nvidias_apex_serves_a_gpu(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "apex/__init__.py", "apex/normalization/__init__.py")
    assert peers.apex(CUDA) == ""
    assert "is for NVIDIA GPUs" in peers.apex(CPU)
    assert "--bnp" in peers.apex_group_batch_norm(CUDA)


@pytest.mark.parametrize(
    ("serves", "module"),
    [
        (peers.flash_attn, "flash_attn"),
        (peers.memeff, "memeff"),
        (peers.siglip_kernel, "siglip_kernel"),
        (peers.liger, "liger_kernel"),
        (peers.inf_cl, "inf_cl"),
    ],
)
def test_kernels_for_gpus_are_absent_from_a_cpu_even_if_installed(
    serves, module, tmp_path, monkeypatch
):
    install(tmp_path, monkeypatch, f"{module}/__init__.py")
    assert serves(CUDA) == ""
    assert "is for NVIDIA GPUs, and this case is on a CPU" in serves(CPU)
