"""Standings against sorting by hand: ties by chance, NaN last."""

import numpy as np
import pytest
import torch

from clipfast.eval.standing import Standing, standing_of


def whole(n, keys, seed=0):
    """Features of small whole numbers: products are exact, and there are many ties."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(-1, 2, (x, 6), generator=generator).float() for x in (n, keys))


@pytest.mark.parametrize(("n", "keys"), [(1, 1), (7, 5), (40, 33)])
def test_keys_above_and_tied_are_counted_exactly(n, keys):
    q, k = whole(n, keys)
    right = torch.randint(0, keys, (n,))
    standing = standing_of(q, k, right)
    similarity = (q @ k.T).tolist()
    for i, row in enumerate(similarity):
        own = row[right[i]]
        assert standing.above[i] == sum(s > own for s in row)
        assert standing.tied[i] == sum(s == own for s in row)


def test_ties_count_as_the_mean_over_all_orders_of_the_keys():
    q, k = whole(30, 12)
    right = torch.randint(0, 12, (30,))
    standing = standing_of(q, k, right)
    similarity, places = (q @ k.T).numpy(), []
    for seed in range(2000):
        order = np.random.default_rng(seed).permutation(12)
        ranking = order[np.argsort(-similarity[:, order], axis=1, kind="stable")]
        places.append(np.where(ranking == right.numpy()[:, None])[1])
    places = np.array(places)
    assert standing.mean_rank() == pytest.approx(places.mean() + 1, abs=0.02)
    for at in (1, 5, 10):
        assert standing.recall(at) == pytest.approx((places < at).mean(), abs=0.01)


def test_of_tied_keys_several_may_be_right():
    """Beside the mean over many random orders of the tied keys."""
    above, tied, right = ([0, 2, 4, 0, 9], [6, 5, 1, 3, 4], [2, 3, 1, 3, 1])
    standing = Standing(*(torch.tensor(x) for x in (above, tied, right)))
    random, first = np.random.default_rng(0), []
    for a, t, r in zip(above, tied, right, strict=True):
        is_right = random.permuted(np.tile(np.arange(t) < r, (20_000, 1)), axis=1)
        first.append(a + is_right.argmax(axis=1) + 1)
    first = np.array(first)
    for k in (1, 2, 5, 10):
        np.testing.assert_allclose(standing.hits(k), (first <= k).mean(axis=1), atol=0.02)
    assert standing.mean_rank() == pytest.approx(first.mean(), abs=0.02)
    assert standing.median_rank() == np.floor(np.median(first.mean(axis=1)))


def test_a_model_that_finds_all_alike_is_right_by_chance_only():
    same = torch.ones(50, 4)
    standing = standing_of(same, same, torch.arange(50))
    assert standing.recall(1) == pytest.approx(1 / 50)
    assert standing.recall(10) == pytest.approx(10 / 50)
    assert standing.mean_rank() == 25.5


def test_features_that_are_not_finite_are_never_right():
    bad = torch.full((20, 4), float("nan"))
    standing = standing_of(bad, bad, torch.arange(20))
    assert standing.recall(10) == 0
    assert standing.mean_rank() == 21


def test_no_query_is_no_standing():
    standing = standing_of(torch.empty(0, 3), torch.ones(4, 3), torch.empty(0, dtype=torch.int64))
    assert [len(x) for x in standing] == [0, 0, 0]
    assert isinstance(standing, Standing)
    assert standing.hits(5).shape == (0,)
