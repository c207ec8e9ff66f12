"""The linear probe against scikit-learn's logistic regression: real digits as pixels, and as a
model's features."""

import logging
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from clipfast import create_model
from clipfast.errors import UserError
from clipfast.eval import linear_probe
from clipfast.eval.linear_probe import MOST_TRIED, fit, search, sweep
from clipfast.eval.splits import hold_out

TRAIN, TEST = slice(0, 500), slice(500, 1200)


@pytest.fixture(scope="module")
def pixels():
    """(1797, 64) float32 in [0, 1], and labels."""
    values, labels = load_digits(return_X_y=True)
    return torch.from_numpy(values).float() / 16, torch.from_numpy(labels)


@pytest.fixture(scope="module")
def embedded(pixels, tiny_model):
    """(1797, 32) features of an image tower."""
    values, labels = pixels
    images = F.interpolate(values.view(-1, 1, 8, 8), size=32).expand(-1, 3, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        return create_model(tiny_model).eval().encode_image(images) * 10, labels


def theirs(features, labels, lam):
    """scikit-learn at its minimum, to which Newton's method goes in few steps."""
    model = LogisticRegression(C=1 / lam, solver="newton-cholesky", max_iter=200, tol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(features.double().numpy(), labels.numpy())


def centred(logits):
    """Softmax does not tell logits apart by what all classes have in common."""
    return logits - logits.mean(dim=1, keepdim=True)


def loss(weight, bias, features, labels, lam):
    logits = features.double() @ weight.T + bias
    return F.cross_entropy(logits, labels, reduction="sum") + lam / 2 * weight.square().sum()


@pytest.mark.parametrize("data", ["pixels", "embedded"])
@pytest.mark.parametrize("lam", [0.01, 1.0, 100.0])
def test_logits_and_predictions_are_scikit_learns(request, data, lam):
    features, labels = request.getfixturevalue(data)
    probe = fit(features[TRAIN], labels[TRAIN], 10, lam)
    peer = theirs(features[TRAIN], labels[TRAIN], lam)
    test = features[TEST]
    expected = torch.from_numpy(peer.decision_function(test.double().numpy()))
    scale = expected.abs().max().item()
    torch.testing.assert_close(
        centred(probe.predict(test)), centred(expected), rtol=0, atol=1e-3 * scale
    )
    assert probe.predict(test).argmax(dim=1).tolist() == peer.predict(test.double()).tolist()
    assert probe.converged
    assert probe.lam == lam


@pytest.mark.parametrize("lam", [1e-6, 1e-4, 1e6])
def test_the_minimum_is_found_where_scikit_learn_stops_short(pixels, lam):
    features, labels = (x[TRAIN] for x in pixels)
    probe = fit(features, labels, 10, lam)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = LogisticRegression(C=1 / lam, max_iter=1000).fit(features.double(), labels)
    weight, bias = torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)
    ours = loss(probe.weight_CD, probe.bias_C, features, labels, lam)
    assert probe.converged
    assert ours <= loss(weight, bias, features, labels, lam)
    # Further iterations from there on, by a smaller tolerance, find next to nothing.
    exact = tightly(features, labels, lam, probe)
    assert ours <= loss(exact.weight_CD, exact.bias_C, features, labels, lam) * (1 + 1e-6)


def tightly(features, labels, lam, start):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "_TOLERANCE", 1e-12)
        return fit(features, labels, 10, lam, max_iterations=5000, start=start)


@pytest.mark.parametrize("lam", [0.1, 10.0])
def test_of_two_classes_it_is_scikit_learns_too(pixels, lam):
    features, labels = pixels[0], (pixels[1] > 4).long()
    probe = fit(features[TRAIN], labels[TRAIN], 2, lam)
    peer = theirs(features[TRAIN], labels[TRAIN], lam)
    logits = probe.predict(features[TEST])
    expected = torch.from_numpy(peer.decision_function(features[TEST].double().numpy()))
    torch.testing.assert_close(logits[:, 1] - logits[:, 0], expected, rtol=1e-3, atol=1e-3)


def test_fewer_images_than_features_give_scikit_learns_probe(pixels):
    features, labels = pixels
    probe = fit(features[:40], labels[:40], 10, 0.1)
    peer = theirs(features[:40], labels[:40], 0.1)
    found = centred(probe.predict(features[TEST]))
    expected = torch.from_numpy(peer.decision_function(features[TEST].double().numpy()))
    torch.testing.assert_close(found, centred(expected), rtol=0, atol=1e-3 * expected.abs().max())
    assert probe.weight_CD.shape == (10, 64)


@pytest.mark.parametrize("images", [40, 500])
def test_panels_and_one_piece_are_the_same_to_rounding(pixels, monkeypatch, images):
    features, labels = (x[:images] for x in pixels)
    whole = fit(features, labels, 10, 1.0, max_iterations=10)
    monkeypatch.setattr(linear_probe, "_panel", lambda classes, width: 17)
    split = fit(features, labels, 10, 1.0, max_iterations=10)
    torch.testing.assert_close(split.weight_CD, whole.weight_CD, rtol=0, atol=1e-8)
    torch.testing.assert_close(split.bias_C, whole.bias_C, rtol=0, atol=1e-8)
    torch.testing.assert_close(
        split.predict(features),
        features.double() @ whole.weight_CD.T + whole.bias_C,
        rtol=0,
        atol=1e-6,
    )


def test_float16_and_float64_features_are_taken(pixels):
    features, labels = (x[TRAIN] for x in pixels)
    exact = fit(features, labels, 10, 1.0)
    for dtype in (torch.float16, torch.float64):  # sixteenths are exact in both
        torch.testing.assert_close(fit(features.to(dtype), labels, 10, 1.0).bias_C, exact.bias_C)


def test_a_start_elsewhere_leads_to_the_same_minimum_and_one_there_takes_no_step(pixels):
    features, labels = (x[TRAIN] for x in pixels)
    cold = fit(features, labels, 10, 1.0)
    warm = fit(features, labels, 10, 1.0, start=fit(features, labels, 10, 30.0))
    scale = cold.predict(features).abs().max()
    torch.testing.assert_close(
        warm.predict(features), cold.predict(features), rtol=0, atol=1e-3 * scale
    )
    assert fit(features, labels, 10, 1.0, start=cold).iterations == 0


def test_a_class_without_a_training_image_is_never_predicted_and_changes_nothing(pixels):
    features, labels = pixels
    known = labels[TRAIN] != 3
    probe = fit(features[TRAIN][known], labels[TRAIN][known], 12, 1.0)
    peer = theirs(features[TRAIN][known], labels[TRAIN][known], 1.0)
    found = probe.predict(features[TEST])
    assert found.argmax(dim=1).tolist() == peer.predict(features[TEST].double()).tolist()
    assert (found[:, [3, 10, 11]] == -math.inf).all()
    again = fit(features[TRAIN][known], labels[TRAIN][known], 12, 1.0, start=probe)
    assert again.iterations == 0


def test_accuracies_are_the_share_of_images_and_the_mean_of_the_classes_shares(pixels):
    features, labels = pixels
    unequal = torch.cat([(labels == label).nonzero()[: 5 + 9 * label, 0] for label in range(9)])
    probe = fit(features[TRAIN], labels[TRAIN], 10, 100.0)
    test, of = features[unequal], labels[unequal]
    found = probe.predict(test).argmax(dim=1)
    assert probe.accuracy(test, of) == pytest.approx((found == of).double().mean().item())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = balanced_accuracy_score(of, found)
    assert probe.accuracy(test, of, per_class=True) == pytest.approx(expected)
    assert expected != pytest.approx(probe.accuracy(test, of))


@pytest.mark.slow
def test_the_sweep_is_the_best_of_scikit_learns_over_the_same_strengths(embedded):
    features, labels = embedded
    train, held = (features[:300], labels[:300]), (features[300:700], labels[300:700])
    told = []
    swept = sweep(*train, *held, 10, tell=told.append)
    assert told == swept.tried
    for lam, accuracy in swept.tried:
        peer = theirs(*train, lam)
        assert accuracy == pytest.approx(peer.score(held[0].double(), held[1]), abs=1e-9)
    best = max(accuracy for _, accuracy in swept.tried)
    strongest = max(lam for lam, accuracy in swept.tried if accuracy == best)
    assert swept.probe.lam == strongest


def test_where_many_strengths_are_right_always_the_strongest_is_chosen(pixels):
    features, labels = (x[pixels[1] < 2] for x in pixels)
    swept = sweep(features[:100], labels[:100], features[100:200], labels[100:200], 2)
    faultless = [lam for lam, accuracy in swept.tried if accuracy == 1]
    assert len(faultless) > 3
    assert swept.probe.lam == max(faultless)


@pytest.mark.slow
def test_the_chosen_strength_is_refitted_on_both_parts(pixels):
    features, labels = pixels
    swept = sweep(features[:200], labels[:200], features[200:400], labels[200:400], 10)
    expected = fit(features[:400], labels[:400], 10, swept.probe.lam)
    first = fit(features[:200], labels[:200], 10, swept.probe.lam)
    found, test = swept.probe.predict(features[TEST]), features[TEST]
    scale = found.abs().max().item()
    torch.testing.assert_close(found, expected.predict(test), rtol=0, atol=1e-3 * scale)
    assert (found - first.predict(test)).abs().max() > 1e-2 * scale


@pytest.mark.slow
def test_without_a_validation_set_a_fifth_of_each_class_is_held_out(pixels):
    features, labels = (x[:300] for x in pixels)
    kept, held = hold_out(labels)
    expected = sweep(features[kept], labels[kept], features[held], labels[held], 10)
    found = sweep(features, labels, None, None, 10)
    assert found.tried == expected.tried
    assert found.probe.lam == expected.probe.lam


def test_classes_count_alike_where_the_sweep_is_told_so(pixels):
    features, labels = pixels
    rare = torch.cat([(labels == 0).nonzero()[:150, 0], (labels == 8).nonzero()[:10, 0]])
    parts = features[rare[::2]], labels[rare[::2]], features[rare[1::2]], labels[rare[1::2]]
    swept = sweep(*parts, 9, per_class=True, refit=False)
    for lam, accuracy in swept.tried[:3]:
        found = fit(*parts[:2], 9, lam).predict(parts[2]).argmax(dim=1)
        assert accuracy == pytest.approx(balanced_accuracy_score(parts[3], found))


@pytest.mark.parametrize("peak", [-6.0, -5.125, -3.375, -0.25, 0.0, 1.875, 4.5, 6.0])
def test_the_search_finds_a_peak_to_an_eighth_of_a_decade(peak):
    visited = []

    def measure(lam):
        visited.append(lam)
        return -abs(math.log10(lam) - peak)

    tried = search(measure)
    best = max(tried, key=lambda t: t.accuracy)
    assert math.log10(best.lam) == pytest.approx(peak, abs=1e-9)
    assert [t.lam for t in tried] == visited
    assert len(set(visited)) == len(visited) <= MOST_TRIED
    decades = [round(math.log10(lam), 9) for lam in visited]
    assert decades[:7] == [6, 4, 2, 0, -2, -4, -6]
    assert all(-6 <= decade <= 6 and decade * 8 == round(decade * 8) for decade in decades)


def test_of_strengths_that_are_equally_good_the_strongest_is_taken():
    tried = search(lambda lam: float(lam <= 10.0))
    assert max(tried, key=lambda t: (t.accuracy, t.lam)).lam == pytest.approx(10.0)


def test_one_that_did_not_converge_is_told(pixels, caplog):
    features, labels = (x[TRAIN] for x in pixels)
    with caplog.at_level(logging.WARNING, "clipfast.eval"):
        probe = fit(features, labels, 10, 0.01, max_iterations=5)
    assert not probe.converged
    assert probe.iterations == 5
    assert "λ = 0.01: expected to converge within 5 iterations" in caplog.text


def test_what_no_probe_can_be_fitted_to_is_named(pixels):
    features, labels = (x[:50] for x in pixels)
    broken = features.clone()
    broken[7, 3] = math.nan
    with pytest.raises(UserError, match="features: expected finite numbers; got NaN"):
        fit(broken, labels, 10, 1.0)
    with pytest.raises(UserError, match="at least 2 classes; got 1"):
        fit(features, torch.zeros(50, dtype=torch.int64), 10, 1.0)
    with pytest.raises(ValueError, match="labels: expected 0 to 4; got 0 to 9"):
        fit(features, labels, 5, 1.0)
    with pytest.raises(ValueError, match=r"labels: expected int64 \(50,\); got \(49,\)"):
        fit(features, labels[1:], 10, 1.0)
    with pytest.raises(ValueError, match=r"floating \(N, D\); got \(50, 64\) of torch.int64"):
        fit(features.long(), labels, 10, 1.0)
    for lam in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lam: expected a positive number; got"):
            fit(features, labels, 10, lam)
