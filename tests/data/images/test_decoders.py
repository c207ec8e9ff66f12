"""The decoder that was asked for, or a sentence that tells why not."""

import importlib.util

import pytest
import torch

from clipfast.data.images.augmentation import Augmentation
from clipfast.data.images.decoders import choose_decoder, has_dali
from clipfast.errors import UserError


def chosen(name, device="cpu", **options):
    return choose_decoder(
        name,
        size=32,
        augmentation=Augmentation(),
        device=torch.device(device),
        threads=1,
        max_batch=4,
        **options,
    )


def test_a_cpu_gets_the_native_decoder_even_where_dali_is_installed():
    assert chosen("auto").name == "native"
    assert chosen("auto", fast_jpeg=True).fast_jpeg


@pytest.mark.skipif(not has_dali(), reason="NVIDIA DALI is not installed")
def test_dali_is_there_when_it_is_asked_for():
    decoder = chosen("dali")
    assert (decoder.name, decoder.part, decoder.device.type) == ("dali", 0, "cpu")


def without_dali(name, package=None):
    return None if name == "nvidia.dali" else object()


def test_dali_without_its_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", without_dali)
    with pytest.raises(UserError, match=r"expected NVIDIA DALI; pip install \"clipfast\[dali\]\""):
        chosen("dali")
    assert chosen("auto", "cuda").name == "native"


def test_fast_jpeg_is_the_native_decoders(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: object())
    with pytest.raises(UserError, match="--fast-jpeg: expected --decoder native; got dali"):
        chosen("dali", fast_jpeg=True)
    assert chosen("auto", "cuda", fast_jpeg=True).name == "native"
