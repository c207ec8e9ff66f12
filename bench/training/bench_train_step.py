"""One training step, forward to optimizer, beside open_clip's model, loss and optimizer.

The right answers are open_clip's: the losses of two steps, and where the steps take the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from clipfast_bench import peers
from clipfast_bench.harness.answers import Answer, worst
from clipfast_bench.harness.cases import FIRST, LARGE, MORE, case
from clipfast_bench.harness.contest import OURS, Contender, Entrant, Subject
from clipfast_bench.harness.memory import peak_mib
from clipfast_bench.inputs import models
from clipfast_bench.inputs.captions import captions
from clipfast_kernels import contrastive_loss

from clipfast import accelerate, tokenize
from clipfast.train.optim.optimizers import adamw

ROUNDS = 7
LOSS_SHARE, ANGLE = 1e-4, 1e-2
ADAPTED, THEIRS = "open_clip after accelerate()", "open_clip"


class OpenClip:
    """What open_clip_train 3.3.0 does in a step of one process, at fp32."""

    def __init__(self, name: str) -> None:
        import open_clip
        from open_clip.loss import ClipLoss

        self.model = models.open_clips(name, output_dict=True).train()
        self.loss = ClipLoss()
        named = list(self.model.named_parameters())
        plain = [p for n, p in named if self._undecayed(n, p)]
        decayed = [p for n, p in named if not self._undecayed(n, p)]
        groups = [
            {"params": plain, "weight_decay": 0.0},
            {"params": decayed, "weight_decay": 0.2},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-6, betas=(0.9, 0.98), eps=1e-6)
        self.text = open_clip.get_tokenizer(models.open_clip_name(name))

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


class Expected:
    """A reference's losses of two steps, and how far they took all parameters."""

    def __init__(
        self, step: Callable[[], float], model: torch.nn.Module, start: dict | None = None
    ) -> None:
        self.start = copy.deepcopy(model.state_dict()) if start is None else start
        self.losses = [step() for _ in range(2)]
        self.moved = moved(model, self.start)

    def answer(self, step: Callable[[], float], model: torch.nn.Module) -> Answer:
        """Of a model that begins with the same weights, after two steps of its own."""
        off = [abs(step() - loss) / abs(loss) for loss in self.losses]
        angle = 1 - torch.cosine_similarity(moved(model, self.start), self.moved, dim=0).item()
        return worst(
            [
                Answer(max(off), LOSS_SHARE, "share of the losses of two steps"),
                Answer(max(0.0, angle), ANGLE, "1 - cosine of the steps of all weights"),
            ]
        )

    def own_answer(self) -> Answer:
        return Answer(0.0, LOSS_SHARE, "share of the losses of two steps")


def moved(model: torch.nn.Module, start: dict) -> torch.Tensor:
    return torch.cat([(p.detach() - start[n]).flatten() for n, p in model.named_parameters()])


@pytest.mark.skipif(bool(peers.open_clip(torch.device("cpu"))), reason="needs open_clip")
@pytest.mark.parametrize(
    ("name", "batch"),
    [
        case(models.TINY, 32, id="tiny, batch 32", tier=FIRST),
        case("ViT-B-32", 32, id="ViT-B-32, batch 32", tier=MORE, work=1.0),
        case("RN50", 16, id="RN50, batch 16", tier=LARGE, work=1.3),
        case("ViT-B-16", 8, id="ViT-B-16, batch 8", tier=LARGE, work=1.0),
    ],
)
def test_train_step(contest, name, batch):
    torch.manual_seed(0)
    theirs = OpenClip(name)
    weights = copy.deepcopy(theirs.model.state_dict())
    texts = captions(batch)
    padded, packed = theirs.text(texts), tokenize(texts, packed=True)
    size = theirs.model.visual.image_size
    side = size[0] if isinstance(size, tuple) else size
    images = torch.randn(batch, 3, side, side)
    expected = Expected(lambda: theirs.step(images, padded), theirs.model, weights)

    def entrant(model: torch.nn.Module) -> Entrant:
        trainer = Clipfast(model, weights)

        def step() -> float:
            return trainer.step(images, packed)

        return Entrant(step, lambda: expected.answer(step, trainer.model))

    def adapted() -> Entrant:
        return entrant(accelerate(models.open_clips(name), verbose=False))

    contest.hold(
        Subject("train_step"),
        [
            Contender(OURS, lambda: entrant(models.ours(name))),
            Contender(
                THEIRS,
                lambda: Entrant(lambda: theirs.step(images, padded), expected.own_answer),
                peers.open_clip,
            ),
            Contender(ADAPTED, adapted, peers.open_clip),
        ],
        rounds=ROUNDS,
        memory_mib={
            who: lambda who=who: peak_mib(alone, who, name, batch) for who in (OURS, THEIRS)
        }
        if name == "ViT-B-32"
        else None,
        figures=lambda samples: {
            "samples/s": batch / sorted(samples[OURS])[len(samples[OURS]) // 2],
            "tokens of a caption": len(packed.tokens) / batch,
        },
    )


def alone(who: str, name: str, batch: int) -> Callable[[], float]:
    """A step, for a process of its own: beyond weights, gradients and optimizer state."""
    texts = captions(batch)
    if who == OURS:
        side = Clipfast(models.ours(name))
        text, pixels = tokenize(texts, packed=True), side.model.image_size
    else:
        side = OpenClip(name)
        text, pixels = side.text(texts), 224
    images = torch.randn(batch, 3, pixels, pixels)
    side.step(images, text)
    return lambda: side.step(images, text)


@pytest.mark.skipif(bool(peers.transformers(torch.device("cpu"))), reason="needs transformers")
@pytest.mark.parametrize("batch", [case(32, id="batch 32", tier=LARGE)])
def test_transformers_train_step(contest, batch):
    """Their CLIPModel, text padded to 77, beside itself after `accelerate`."""
    import transformers

    torch.manual_seed(0)
    theirs = TransformersStep(transformers.CLIPModel(transformers.CLIPConfig()))
    ours = TransformersStep(accelerate(copy.deepcopy(theirs.model), verbose=False))
    images, texts = torch.randn(batch, 3, 224, 224), captions(batch)
    text = tokenize(texts)
    mask = (text != 0).long()
    start = dict(copy.deepcopy(theirs.model).named_parameters())
    expected = Expected(lambda: theirs.step(images, text, mask), theirs.model, start)

    def step() -> float:
        return ours.step(images, text, mask)

    contest.hold(
        Subject("train_step"),
        [
            Contender(OURS, lambda: Entrant(step, lambda: expected.answer(step, ours.model))),
            Contender(
                "transformers' CLIPModel",
                lambda: Entrant(lambda: theirs.step(images, text, mask), expected.own_answer),
                peers.transformers,
            ),
        ],
        rounds=ROUNDS,
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
