"""`--torchcompile`: the same losses, one compilation whatever the captions' lengths, and a word
where there is no compiler."""

import numpy as np
import pytest
import torch
from clipfast_kernels import contrastive_loss
from torch._dynamo.utils import counters

from clipfast.data.batch import Batch
from clipfast.data.images.normalize import Normalize
from clipfast.encoder import Encoder
from clipfast.errors import UserError
from clipfast.models import linear
from clipfast.models.compiling import check_compiler
from clipfast.models.config import parse_model_config
from clipfast.models.factory import build_model
from clipfast.packed_text import pack_ids

TEXT = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "patch_size": 16, "layers": 1, "width": 32, "head_width": 32}
STEPS, SAMPLES = 5, 6


def batch_of(step):
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(256, (SAMPLES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    rows = [[49406, *range(5, 5 + (2 * n + step) % 9), 100 + n, 49407] for n in range(SAMPLES)]
    return Batch(images, pack_ids(rows), np.arange(SAMPLES))


@pytest.fixture
def small_layers_by_onednn(monkeypatch):
    """As larger ones go on AMD's processors."""
    monkeypatch.setattr(linear, "_LEAST", {True: 1, False: 1})
    monkeypatch.setattr(linear, "_onednn_is_faster", torch.backends.mkldnn.is_available)


def train(compiled):
    """Losses of a few steps, each with a pass without a graph first as gradients' caching has it;
    and how many graphs were compiled after each."""
    torch.manual_seed(0)
    torch.compiler.reset()
    counters.clear()
    config = {"embed_dim": 16, "vision_cfg": VIT, "text_cfg": TEXT}
    model = build_model(parse_model_config(config)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    encoder = Encoder(
        model,
        precision="fp32",
        normalize=Normalize(),
        device=torch.device("cpu"),
        compiled=compiled,
    )
    losses, graphs = [], []
    for step in range(STEPS):
        batch = batch_of(step)
        with torch.no_grad():
            encoder.image(batch), encoder.text(batch)
        image, text = encoder.image(batch), encoder.text(batch)
        loss = contrastive_loss(image, text, model.logit_scale.exp())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, graphs


@pytest.mark.slow
@pytest.mark.usefixtures("small_layers_by_onednn")
def test_compiled_towers_give_the_same_losses_and_compile_once_for_all_lengths():
    losses, graphs = train(compiled=True)
    assert graphs == [4] * STEPS, "each tower's, with and without gradients"
    assert losses == pytest.approx(train(compiled=False)[0], rel=1e-5)


def test_without_a_compiler_there_is_a_word():
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(UserError, match=r"--torchcompile: expected a C\+\+ compiler, .*; got none"),
    ):
        check_compiler(torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there Triton is installed with torch")
def test_without_triton_a_gpu_has_a_word():
    with pytest.raises(UserError, match="--torchcompile: expected Triton"):
        check_compiler(torch.device("cuda"))
