"""One training step, forward to optimizer, beside open_clip's model, loss and optimizer."""

from __future__ import annotations

import random

import open_clip
import pytest
import torch
from clipfast_bench.compare import interleave
from clipfast_kernels import contrastive_loss
from open_clip.loss import ClipLoss

from clipfast import create_model, tokenize
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
    def __init__(self, name: str, weights: dict) -> None:
        self.model = create_model(name).train()
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
    ours = Clipfast(name, theirs.model.state_dict())
    texts = captions(batch)
    size = ours.model.image_size
    images = torch.randn(batch, 3, size, size)
    padded, packed = theirs.text(texts), tokenize(texts, packed=True)
    before = {n: p.detach().clone() for n, p in ours.model.named_parameters()}
    for _ in range(2):
        expected, actual = theirs.step(images, padded), ours.step(images, packed)
        assert abs(actual - expected) <= 1e-4 * expected, "losses differ: nothing is timed"
    steps = [
        torch.cat([(p.detach() - before[n]).flatten() for n, p in side.model.named_parameters()])
        for side in (ours, theirs)
    ]
    assert torch.cosine_similarity(*steps, dim=0) > 0.99, "steps differ: nothing is timed"
    benchmark.extra_info["mean_tokens"] = len(packed.tokens) / batch
    interleave(
        benchmark,
        lambda: ours.step(images, packed),
        {"open_clip 3.3.0": lambda: theirs.step(images, padded)},
        rounds=rounds,
    )
