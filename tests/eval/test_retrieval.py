"""Retrieval metrics beside open_clip's own and the dense computation, and the batch-wise loss."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks

from clipfast.eval.retrieval import batchwise_loss, clip_benchmark_names, retrieval_metrics


def features(pairs, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(pairs, 16, generator=generator)
    text = image + torch.randn(pairs, 16, generator=generator)
    return F.normalize(image, dim=1), F.normalize(text, dim=1)


def captioned(images, most=7, seed=0):
    """Features of images with 1 to `most` texts each, in a random order."""
    random = np.random.default_rng(seed)
    own = np.repeat(np.arange(images), random.integers(1, most + 1, images))
    own = torch.from_numpy(random.permutation(own))
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(images, 16, generator=generator).double()
    text = image[own] + 1.5 * torch.randn(len(own), 16, generator=generator)
    return F.normalize(image, dim=1), F.normalize(text, dim=1), own


def dense(image, text, own):
    """From all similarities, sorted; an image's rank is that of the first of its texts."""
    similarities = (image @ text.T).numpy()
    right = own.numpy() == np.arange(len(image))[:, None]
    metrics = {}
    for name, rows, is_right in (
        ("image_to_text", similarities, right),
        ("text_to_image", similarities.T, right.T),
    ):
        order = np.argsort(-rows, axis=1, kind="stable")
        ranks = np.take_along_axis(is_right, order, axis=1).argmax(axis=1) + 1
        metrics[f"{name}_mean_rank"] = ranks.mean()
        metrics[f"{name}_median_rank"] = np.floor(np.median(ranks))
        metrics |= {f"{name}_R@{k}": (ranks <= k).mean() for k in (1, 5, 10)}
    return metrics


@pytest.mark.parametrize("pairs", [1, 2, 9, 100, 333])
def test_the_metrics_are_open_clips(pairs):
    get_clip_metrics = pytest.importorskip("open_clip_train.train").get_clip_metrics
    image, text = features(pairs)
    theirs = get_clip_metrics(image, text, torch.tensor(20.0))
    assert retrieval_metrics(image, text) == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("images", [1, 2, 40, 300])
def test_several_texts_of_an_image_give_the_figures_of_all_similarities(images):
    image, text, own = captioned(images)
    found, expected = retrieval_metrics(image, text, image_of_text=own), dense(image, text, own)
    assert found == pytest.approx(expected, rel=1e-15)
    if images == 300:
        assert expected["image_to_text_R@1"] > expected["text_to_image_R@1"] > 0.1


def test_five_texts_in_the_images_order_as_karpathys_splits_have():
    image, text, own = captioned(60, most=1)
    text = F.normalize(text.repeat_interleave(5, 0) + 0.1 * torch.randn(300, 16), dim=1)
    own = own.repeat_interleave(5)
    expected = dense(image, text, own)
    assert retrieval_metrics(image, text, image_of_text=own) == pytest.approx(expected, rel=1e-15)


def test_one_text_each_in_another_order_is_the_same_as_in_the_images():
    image, text = (x.double() for x in features(50))
    order = torch.randperm(50)
    found = retrieval_metrics(image, text[order], image_of_text=order)
    assert found == pytest.approx(retrieval_metrics(image, text), rel=1e-15)


def test_texts_that_are_the_same_come_first_by_chance():
    """Of an image with two texts of four that are all alike one is first in half of all orders."""
    image = F.normalize(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), dim=1)
    text, own = torch.ones(4, 2) / 2**0.5, torch.tensor([0, 0, 1, 1])
    found = retrieval_metrics(image, text, image_of_text=own)
    assert found["image_to_text_R@1"] == pytest.approx(0.5)
    assert found["image_to_text_mean_rank"] == pytest.approx(5 / 3)
    assert found["image_to_text_R@5"] == 1


def test_texts_that_rounding_tells_apart_do_not_push_each_other_down():
    """An image's texts are its most similar ones, and as good as equal."""
    image, _, _ = captioned(30)
    image = image.float()
    own = torch.arange(30).repeat_interleave(4)
    text = F.normalize(image[own] + 1e-7 * torch.randn(120, 16), dim=1)
    found = retrieval_metrics(image, text, image_of_text=own)
    assert found["image_to_text_mean_rank"] == 1
    assert found["image_to_text_R@1"] == 1


def test_features_that_are_not_finite_find_nothing():
    image, text, own = captioned(20)
    found = retrieval_metrics(image * float("nan"), text, image_of_text=own)
    assert found["image_to_text_R@10"] == found["text_to_image_R@10"] == 0
    assert found["image_to_text_mean_rank"] == len(text) + 1


def test_the_recalls_have_clip_benchmarks_names_and_figures():
    image, text, own = captioned(80)
    named = clip_benchmark_names(retrieval_metrics(image, text, image_of_text=own))
    similarities = text @ image.T
    for k in (1, 5, 10):
        images_found = (similarities.topk(k, dim=1).indices == own[:, None]).any(1)
        texts_found = (own[similarities.T.topk(k, dim=1).indices] == torch.arange(80)[:, None]).any(
            1
        )
        assert named[f"image_retrieval_recall@{k}"] == images_found.double().mean().item()
        assert named[f"text_retrieval_recall@{k}"] == texts_found.double().mean().item()
    assert len(named) == 6


def on_a_rank(image, text, own):
    return retrieval_metrics(image, text, dist.group.WORLD, image_of_text=own)


@pytest.mark.slow
def test_ranks_share_the_queries_and_all_have_the_figures_of_one():
    image, text, own = captioned(2, most=4)
    expected = retrieval_metrics(image, text, image_of_text=own)
    assert run_ranks(3, on_a_rank, image, text, own) == [expected] * 3


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ([0, 1, 2], r"int64 \(4,\), one image for each of 1 or more texts; got torch.int64 \(3,\)"),
        ([0.0, 1.0, 2.0, 2.0], r"expected int64 \(4,\), .*; got torch.float32 \(4,\)"),
        ([0, 1, 2, 3], "expected images 0 to 2; got 0 to 3"),
        ([0, -1, 2, 1], "expected images 0 to 2; got -1 to 2"),
        ([0, 2, 2, 0], "expected a text for each of 3 images; got none for 1"),
    ],
)
def test_texts_that_do_not_fit_the_images_are_named(own, sentence):
    with pytest.raises(ValueError, match=f"^image_of_text: .*{sentence}"):
        retrieval_metrics(torch.ones(3, 2), torch.ones(4, 2), image_of_text=torch.tensor(own))


def test_no_pair_is_named():
    with pytest.raises(ValueError, match="one image for each of 1 or more texts"):
        retrieval_metrics(torch.ones(0, 2), torch.ones(0, 2))


@pytest.mark.parametrize("batch_size", [1, 7, 25, 100])
def test_the_loss_is_the_mean_over_pairs_of_the_batches_losses(batch_size):
    image, text = features(25)
    total = 0.0
    for i, t in zip(image.split(batch_size), text.split(batch_size), strict=True):
        logits, labels = 20.0 * i @ t.T, torch.arange(len(i))
        both = F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)
        total += both.item() / 2 * len(i)
    found = batchwise_loss(image, text, torch.tensor(20.0), batch_size)
    assert found == pytest.approx(total / 25, rel=1e-5, abs=1e-6)
