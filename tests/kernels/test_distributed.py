"""Ranks of a process group against one process that has the whole batch. gloo, real processes."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from clipfast_kernels import (
    backends,
    contrastive_loss,
    contrastive_loss_with_metrics,
    gathered_similarity,
    sigmoid_loss,
    start_gather,
)
from clipfast_kernels.ops.contrastive.cost import contrastive_gathered_bytes
from clipfast_kernels.ops.sigmoid.cost import sigmoid_gathered_bytes
from ranks import run_ranks

BACKENDS = [name for name, why in backends("contrastive_loss").reasons.items() if not why]
B, D = 5, 12
PRECISION = {torch.float32: 1e-5, torch.float64: 1e-12}


def batch(n, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image, text = (
        torch.randn(n, D, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)
    )
    return image, text, torch.randint(0, n, (n,), generator=generator)


def softmax(image, text, scale, bias, **options):
    return contrastive_loss(image, text, scale, label_smoothing=0.1, **options)


def sigmoid(image, text, scale, bias, **options):
    return sigmoid_loss(image, text, scale, bias, **options)


LOSSES = {"softmax": softmax, "sigmoid": sigmoid}


def value_and_gradients(loss, image, text, ids, dtype, **options):
    """The loss, the features' gradients, and those of scale and bias."""
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    scale = torch.tensor(9.0, dtype=dtype, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=dtype, requires_grad=True)
    value = LOSSES[loss](image, text, scale, bias, ids=ids, **options)
    value.backward()
    no_bias = torch.zeros_like(scale)
    return [
        value.detach(),
        image.grad,
        text.grad,
        scale.grad,
        no_bias if bias.grad is None else bias.grad,
    ]


def own(x):
    return x.view(dist.get_world_size(), B, *x.shape[1:])[dist.get_rank()]


def on_a_rank(cases):
    results = []
    for loss, backend, dtype in cases:
        image, text, ids = batch(B * dist.get_world_size(), dtype)
        options = {"group": dist.group.WORLD, "backend": backend}
        runs = [
            value_and_gradients(loss, own(image), own(text), own(ids), dtype, **options)
            for _ in range(2)
        ]
        same_bits = all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        results.append((runs[0], same_bits))
    return results


def dense(loss, image, text, ids):
    """The formula by itself, on the whole batch in float64, written without the library."""
    image, text = image.double().requires_grad_(), text.double().requires_grad_()
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-3.0, dtype=torch.float64, requires_grad=True)
    cosines = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    own_pair = torch.eye(len(ids), dtype=torch.bool)
    kept = own_pair | (ids[:, None] != ids)
    if loss == "softmax":
        total = 0.0
        for side in (scale * cosines, scale * cosines.T):
            log_p = side.masked_fill(~kept, -torch.inf).log_softmax(dim=1)
            even = log_p.masked_fill(~kept, 0).sum(dim=1) / kept.sum(dim=1)
            total = total - (0.9 * log_p.diagonal() + 0.1 * even).mean() / 2
    else:
        logits = scale * cosines + bias
        signed = torch.where(own_pair, logits, -logits)
        total = -(F.logsigmoid(signed) * kept).sum() / len(ids)
    total.backward()
    no_bias = torch.zeros_like(scale)
    return [
        total.detach(),
        image.grad,
        text.grad,
        scale.grad,
        no_bias if bias.grad is None else bias.grad,
    ]


def assert_close(actual, expected, precision, what):
    names = ("loss", "d_image", "d_text", "d_scale", "d_bias")
    for name, a, e in zip(names, actual, expected, strict=True):
        error = (a.double() - e.double()).abs().max().item()
        size = max(e.abs().max().item(), 1e-3)
        assert error <= precision * size, f"{what}: {name}: {error / size:.2e} of {size:.2e}"


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_average_to_the_gradient_of_the_whole_batch(world_size):
    cases = [
        (loss, backend, dtype)
        for loss in LOSSES
        for backend in BACKENDS
        if backend != "triton"
        for dtype in PRECISION
    ]
    by_rank = run_ranks(world_size, on_a_rank, cases)
    for i, (loss, backend, dtype) in enumerate(cases):
        what = f"{loss} {backend} {dtype} on {world_size} ranks"
        runs = [results[i][0] for results in by_rank]
        assert all(results[i][1] for results in by_rank), f"{what}: two runs differ in bits"
        assert all(torch.equal(run[0], runs[0][0]) for run in runs), f"{what}: ranks' losses differ"
        joined = [
            runs[0][0],
            torch.cat([run[1] for run in runs]) / world_size,
            torch.cat([run[2] for run in runs]) / world_size,
            torch.stack([run[3] for run in runs]).mean(),
            torch.stack([run[4] for run in runs]).mean(),
        ]
        image, text, ids = batch(B * world_size, dtype)
        alone = value_and_gradients(loss, image, text, ids, dtype, backend=backend)
        assert_close(joined, alone, PRECISION[dtype], f"{what}, against one process")
        assert_close(joined, dense(loss, image, text, ids), PRECISION[dtype], f"{what}, dense")


def count_bytes(run):
    """The output bytes of every collective in run()."""
    counted = []
    gather = dist.all_gather_into_tensor

    def counting(output, *args, **kwargs):
        counted.append(output.nbytes)
        return gather(output, *args, **kwargs)

    dist.all_gather_into_tensor = counting
    try:
        run()
    finally:
        dist.all_gather_into_tensor = gather
    return counted


def bytes_on_a_rank():
    group, n = dist.group.WORLD, B * dist.get_world_size()
    results = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        image, text, ids = batch(n, dtype)
        for given in (None, own(ids)):
            for loss in LOSSES:

                def step(loss=loss, given=given, image=image, text=text, dtype=dtype):
                    value_and_gradients(loss, own(image), own(text), given, dtype, group=group)

                results[loss, dtype, given is not None] = sum(count_bytes(step))
    return results


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_rank_receives_what_the_formula_says(world_size):
    n = B * world_size
    for results in run_ranks(world_size, bytes_on_a_rank):
        for (loss, dtype, with_ids), counted in results.items():
            size = torch.empty(0, dtype=dtype).element_size()
            wide = 8 if dtype == torch.float64 else 4
            expected = 2 * n * D * size + 8 * n * with_ids
            expected += 2 * n * wide if loss == "softmax" else 8 * world_size
            assert counted == expected, (loss, dtype, with_ids)
            if loss == "softmax":
                assert counted == contrastive_gathered_bytes(n, D, size, with_ids)
            else:
                assert counted == sigmoid_gathered_bytes(n, D, size, world_size, with_ids)


def handles_on_a_rank():
    group = dist.group.WORLD
    image, text, _ = batch(B * dist.get_world_size())
    plain, handled = [], []
    calls = count_bytes(lambda: plain.extend(gradients(own(image), own(text), group)))
    early = count_bytes(lambda: handled.extend(gradients(own(image), own(text), group, True)))
    same = all(torch.equal(a, b) for a, b in zip(plain, handled, strict=True))

    # GradCache: features once, one loss, then every micro-batch's way back.
    weight = torch.ones(D, D).triu().requires_grad_()
    micro = own(image).split(2)
    features = torch.cat([x @ weight for x in micro]).detach().requires_grad_()

    def accumulate():
        handle = start_gather(features, group)
        contrastive_loss(handle, own(text), 9.0, group=group).backward()
        for x, d in zip(micro, features.grad.split(2), strict=True):
            (x @ weight).backward(d)
        contrastive_loss(handle, own(text), 9.0, group=group)  # again: nothing to gather for it

    gathers = count_bytes(accumulate)
    direct = torch.ones(D, D).triu().requires_grad_()
    contrastive_loss(own(image) @ direct, own(text), 9.0, group=group).backward()
    torch.testing.assert_close(weight.grad, direct.grad)
    return same, calls == early, len(gathers)


def gradients(image, text, group, early=False):
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    given = (start_gather(x, group) if early else x for x in (image, text))
    loss = contrastive_loss(*given, 9.0, group=group)
    loss.backward()
    return loss.detach(), image.grad, text.grad


def test_a_gather_started_early_changes_nothing_and_serves_more_than_one_loss():
    for same, equal_bytes, gathers in run_ranks(2, handles_on_a_rank):
        assert same
        assert equal_bytes
        assert gathers == 2 + 2 + 1 + 2  # image once, text twice; two vectors per loss


def unequal_on_a_rank():
    image, text, _ = batch(B + dist.get_rank())
    try:
        contrastive_loss(image, text, 9.0, group=dist.group.WORLD)
    except ValueError as error:
        return str(error)
    return None


def test_unequal_batches_are_a_sentence_on_every_rank():
    for message in run_ranks(2, unequal_on_a_rank):
        assert "expected the same shape and dtype on every rank" in message
        assert f"got ({B}, {D}) torch.float32, ({B + 1}, {D}) torch.float32" in message


def metrics_on_a_rank():
    image, text, ids = batch(B * dist.get_world_size())
    text = image + 0.8 * text
    return contrastive_loss_with_metrics(
        own(image), own(text), 9.0, ids=own(ids), group=dist.group.WORLD
    )


def test_metrics_are_those_of_all_ranks():
    image, text, ids = batch(B * 4)
    expected = contrastive_loss_with_metrics(image, image + 0.8 * text, 9.0, ids=ids)
    assert 0 < expected.image_top1 < 1
    for found in run_ranks(4, metrics_on_a_rank):
        torch.testing.assert_close(found, expected)


def ragged_on_a_rank():
    rank = dist.get_rank()
    queries, keys, _ = batch(30)
    rows = slice(10 * rank, 10 * rank + 7 + rank)  # ranks have 7, 8 and 9 keys, and 3 queries each
    positives = torch.tensor([[0, 5, 23], [6, 7, 14], [15, 1, 8]])[rank]
    return gathered_similarity(
        queries[3 * rank : 3 * rank + 3],
        keys[rows],
        scale=2.0,
        positives=positives,
        topk=4,
        group=dist.group.WORLD,
    )


def test_similarity_gathers_keys_of_ranks_that_have_different_numbers():
    queries, keys, _ = batch(30)
    everyone = torch.cat([keys[0:7], keys[10:18], keys[20:29]])
    positives = torch.tensor([0, 5, 23, 6, 7, 14, 15, 1, 8])
    expected = gathered_similarity(
        queries[:9], everyone, scale=2.0, positives=positives, topk=4, backend="reference"
    )
    found = [torch.cat(parts) for parts in zip(*run_ranks(3, ragged_on_a_rank), strict=True)]
    torch.testing.assert_close(found, list(expected))


def open_clips_on_a_rank():
    from open_clip import loss as open_clip

    from clipfast import ClipLoss, SigLipLoss

    image, text, _ = batch(B * dist.get_world_size())
    rank, world_size = dist.get_rank(), dist.get_world_size()
    results = []
    for make in (
        lambda module: module.ClipLoss(True, True, rank=rank, world_size=world_size),
        lambda module: module.SigLipLoss(rank=rank, world_size=world_size, dist_impl="gather"),
    ):
        ours = type("Ours", (), {"ClipLoss": ClipLoss, "SigLipLoss": SigLipLoss})
        for classes in (open_clip, ours):
            x, y = (own(F.normalize(f, dim=1)).clone().requires_grad_() for f in (image, text))
            scale, bias = (torch.tensor(v, requires_grad=True) for v in (9.0, -3.0))
            make(classes)(x, y, scale, bias).backward()
            if bias.grad is None:
                bias.grad = torch.zeros(())
            for scalar in (scale, bias):
                dist.all_reduce(scalar.grad)
            results.append([x.grad, y.grad, scale.grad, bias.grad])
    return results


def test_the_drop_in_losses_average_to_open_clips_gradients():
    pytest.importorskip("open_clip")
    for theirs, ours, their_siglip, our_siglip in run_ranks(2, open_clips_on_a_rank):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(our_siglip, their_siglip, rtol=1e-4, atol=1e-6)
