"""One training step, forward to optimizer, beside open_clip's model, loss and optimizer."""

from __future__ import annotations

import copy
import random

import open_clip
import pytest
import torch
import transformers
from clipfast_bench.compare import extra_peak_mib, interleave
from clipfast_kernels import contrastive_loss
from open_clip.loss import ClipLoss

from clipfast import accelerate, create_model, tokenize
from clipfast.train.optimizer import adamw

WORDS = ["a", "the", "of", "on", "with", "dog", "cat", "red", "small", "street", "beach", "near"]


def captions(count: int) -> list[str]:
    """Of 10 to 26 tokens, 18 on average, as web captions have."""
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.randint(8, 24))) for _ in range(count)]


class OpenClip:
    """What open_clip_train 3.3.0 does in a step of one process, at fp32."""

    def __init__(self, name: str) -> None:
        self.model = open_clip.create_model(name, output_dict=True).train()
        self.loss = ClipLoss()
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if self._undecayed(n, p)]
        decayed = [p for n, p in named if not self._undecayed(n, p)]
        groups = [
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": 0.2},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.98), eps=1e-6)
        self.text = open_clip.get_tokenizer(name)

    @staticmethod
    def _undecayed(name: str, p: torch.Tensor) -> bool:
        return p.ndim < 2 or any(word in name for word in ("bn", "ln", "bias", "logit_scale"))

    def step(self, images: torch.Tensor, text: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.loss(**self.model(images, text))
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(0, 4.6052)
        return loss.item()


class Clipfast:
    """Our trainer's step of a model of ours, or of open_clip's after `accelerate`."""

    def __init__(self, model: torch.nn.Module, weights: dict | None = None) -> None:
        self.model = model.train()
        if weights is not None:
            self.model.load_state_dict(weights)
        self.optimizer = adamw(self.model, lr=1e-6, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2)

    def step(self, images: torch.Tensor, text) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        model = self.model
        loss = contrastive_loss(
            model.encode_image(images), model.encode_text(text), model.logit_scale.exp()
        )
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)
        return loss.item()


@pytest.mark.parametrize(
    ("name", "batch", "rounds"), [("ViT-B-32", 32, 7), ("ViT-B-16", 8, 5), ("RN50", 16, 4)]
)
def test_train_step(benchmark, name, batch, rounds):
    torch.manual_seed(0)
    theirs = OpenClip(name)
    weights = copy.deepcopy(theirs.model.state_dict())
    ours = Clipfast(create_model(name), weights)
    accelerated = accelerate(open_clip.create_model(name), verbose=False)
    adapted = Clipfast(accelerated, weights)
    texts = captions(batch)
    size = ours.model.image_size
    images = torch.randn(batch, 3, size, size)
    padded, packed = theirs.text(texts), tokenize(texts, packed=True)
    for _ in range(2):
        expected = theirs.step(images, padded)
        for actual in (ours.step(images, packed), adapted.step(images, packed)):
            assert abs(actual - expected) <= 1e-4 * expected, "losses differ: nothing is timed"
    for side in (ours, adapted):
        steps = [moved(model, weights) for model in (side.model, theirs.model)]
        assert torch.cosine_similarity(*steps, dim=0) > 0.99, "steps differ: nothing is timed"
    benchmark.extra_info["mean_tokens"] = len(packed.tokens) / batch
    ratios = interleave(
        benchmark,
        lambda: ours.step(images, packed),
        {
            "open_clip 3.3.0": lambda: theirs.step(images, padded),
            "open_clip 3.3.0 after accelerate()": lambda: adapted.step(images, packed),
        },
        rounds=rounds,
    )
    if ratios:
        reached = 1 / ratios["open_clip 3.3.0 after accelerate()"]
        benchmark.extra_info["figures"] = {"of our speed after accelerate()": reached}


def moved(model: torch.nn.Module, start: dict) -> torch.Tensor:
    """How far the steps have taken all parameters."""
    return torch.cat([(p.detach() - start[n]).flatten() for n, p in model.named_parameters()])


def test_transformers_train_step(benchmark):
    """Their CLIPModel, text padded to 77, beside itself after `accelerate`."""
    torch.manual_seed(0)
    theirs = TransformersStep(transformers.CLIPModel(transformers.CLIPConfig()))
    ours = TransformersStep(accelerate(copy.deepcopy(theirs.model), verbose=False))
    batch = 32
    images, texts = torch.randn(batch, 3, 224, 224), captions(batch)
    text = tokenize(texts)
    mask = (text != 0).long()
    for _ in range(2):
        expected, actual = (side.step(images, text, mask) for side in (theirs, ours))
        assert abs(actual - expected) <= 1e-4 * expected, "losses differ: nothing is timed"
    benchmark.extra_info["mean_tokens"] = mask.sum().item() / batch
    interleave(
        benchmark,
        lambda: ours.step(images, text, mask),
        {"transformers' CLIPModel": lambda: theirs.step(images, text, mask)},
        rounds=7,
    )


class TransformersStep:
    """One step with its own loss; the same fused optimizer on both sides."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)

    def step(self, images: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.model(text, images, mask, return_loss=True).loss
        loss.backward()
        self.optimizer.step()
        return loss.item()


def test_train_step_memory(benchmark):
    """Peak memory of a ViT-B-32 step of batch 32 beyond weights, gradients and optimizer state."""
    ours = memory_mib("Clipfast(create_model('ViT-B-32'))", "tokenize(captions(32), packed=True)")
    theirs = memory_mib("OpenClip('ViT-B-32')", "side.text(captions(32))")
    benchmark.extra_info["figures"] = {
        "MiB": ours,
        "open_clip's MiB": theirs,
        "share": ours / theirs,
    }
    benchmark.pedantic(lambda: None)  # no time is of interest


def memory_mib(side: str, text: str) -> float:
    code = f"""
import ctypes
import torch
from clipfast_bench.bench_train_step import *
side = {side}
images, text = torch.randn(32, 3, 224, 224), {text}
side.step(images, text)
ctypes.CDLL(None).malloc_trim(0)
# ---
side.step(images, text)
"""
    return extra_peak_mib(code)
