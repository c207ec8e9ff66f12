"""Linear probe: multinomial logistic regression on features as they are, its strength λ chosen on
validation images.

N images, D features, E = D + 1 of them with the 1 that the bias multiplies, C classes.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from clipfast.errors import UserError
from clipfast.eval.splits import hold_out

logger = logging.getLogger("clipfast.eval")

MAX_ITERATIONS = 1000
MOST_TRIED = 15  # strengths, in a sweep

# λ = 10^(step / 8): the sweep's ends, and the steps between those that it begins with.
_PER_DECADE, _WEAKEST, _STRONGEST, _FIRST = 8, -48, 48, 16
# How far above the minimum, as a share of it: by then logits have three digits after the point.
_TOLERANCE = 1e-8
_ROUND = 10  # iterations before coordinates are chosen anew; then twice as many, and so on
_PANEL_BYTES = 4 << 20
# A moment is as good from so many times as many rows as it has columns.
_ROWS_PER_COLUMN = 8


class Probe(NamedTuple):
    """A linear classifier of features.

    Attributes:
        weight_CD, bias_C: float64. A class without a training image has the bias -inf.
        lam: λ.
        iterations: that the minimum took.
        converged: within those allowed.
    """

    weight_CD: Tensor
    bias_C: Tensor
    lam: float
    iterations: int = 0
    converged: bool = True

    def predict(self, features_ND: Tensor) -> Tensor:
        """(N, C) float64 logits."""
        return torch.cat(list(self._panels(features_ND)))

    def accuracy(self, features_ND: Tensor, labels_N: Tensor, *, per_class: bool = False) -> float:
        """The share of images whose class has the largest logit.

        Args:
            features_ND: on the probe's device.
            labels_N: int64.
            per_class: the mean of the classes' shares instead, over those with an image.

        Memory: a panel of logits.
        """
        found_N = torch.cat([logits.argmax(dim=1) for logits in self._panels(features_ND)])
        labels_N = labels_N.to(found_N.device)
        right_N = (found_N == labels_N).double()
        if not per_class:
            return right_N.mean().item()
        of_C = labels_N.bincount()
        return (labels_N.bincount(right_N) / of_C)[of_C > 0].mean().item()

    def _panels(self, features_ND: Tensor) -> Iterator[Tensor]:
        for x in features_ND.split(_panel(*self.weight_CD.shape)):
            yield torch.addmm(self.bias_C, x.double(), self.weight_CD.T)


class Tried(NamedTuple):
    """A step of a sweep."""

    lam: float
    accuracy: float


class Sweep(NamedTuple):
    """Attributes:
    probe: of the chosen λ.
    tried: every λ, in the order of trial, with its accuracy on the validation images.
    """

    probe: Probe
    tried: list[Tried]


def fit(
    features_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    lam: float,
    *,
    max_iterations: int = MAX_ITERATIONS,
    start: Probe | None = None,
) -> Probe:
    """argmin Σ_i −log softmax(W x_i + b)[y_i] + λ/2 ‖W‖², by L-BFGS in float64.

    That is the minimum of scikit-learn's ``LogisticRegression(C=1 / lam)``, which the paper used.
    The bias is not penalised, and features are taken as they are, not normalised. Of two classes
    scikit-learn keeps, and penalises, the difference of both rows of W alone: λ counts twice here.

    Args:
        features_ND: floating, on a device that has float64: differences of the loss that tell
            L-BFGS where to go are finer than float32.
        labels_N: int64 in [0, classes).
        classes: C.
        lam: λ > 0.
        max_iterations: of L-BFGS; one that stops there is told in the log.
        start: begins at it, which saves steps. The loss is convex: the minimum is the same.

    Raises:
        ValueError: shapes, labels or λ that do not fit.
        UserError: features that are not finite, or of one class alone.

    Memory: a panel of features and of logits, W some 30 times, and (8 E, E); no copy of the
        features.

    Source: Radford et al. 2021, arXiv 2103.00020, appendix A.3; openai/CLIP issue 39 for
        scikit-learn and its defaults.
    """
    problem = _Problem([(features_ND, labels_N)], classes)
    probe = problem.minimum(lam, max_iterations, start)
    _tell(probe, max_iterations)
    return probe


def sweep(
    train_features: Tensor,
    train_labels: Tensor,
    validation_features: Tensor | None,
    validation_labels: Tensor | None,
    classes: int,
    *,
    max_iterations: int = MAX_ITERATIONS,
    per_class: bool = False,
    refit: bool = True,
    tell: Callable[[Tried], None] | None = None,
) -> Sweep:
    """The probe of the λ that is most accurate on the validation images.

    λ ∈ {1e-6, 1e-4, 1e-2, 1, 1e2, 1e4, 1e6} first; then the interval around the best is halved, to
    8 steps a decade. Of equals the strongest is best. Each λ starts at the minimum of the nearest.

    Args:
        train_features, train_labels: as `fit` takes them.
        validation_features, validation_labels: None holds a fifth of each class out of training.
        classes: C.
        max_iterations: for each λ.
        per_class: chooses by the mean of the classes' accuracies.
        refit: fits the chosen λ once more, to both parts together.
        tell: called with each λ, at most MOST_TRIED times.

    Raises:
        ValueError, UserError: as `fit`; no class is large enough to hold images out.

    Source: Radford et al. 2021, arXiv 2103.00020, appendix A.3.
    """
    if validation_features is None or validation_labels is None:
        kept, held = (x.to(train_features.device) for x in hold_out(train_labels))
        train = train_features[kept], train_labels[kept.to(train_labels.device)]
        validation = train_features[held], train_labels[held.to(train_labels.device)]
    else:
        train = train_features, train_labels
        validation = validation_features, validation_labels
    _check(*validation, classes)  # before hours of work
    problem = _Problem([train], classes)
    probes = dict[float, Probe]()

    def measure(lam: float) -> float:
        start = min(probes.values(), key=lambda p: abs(math.log(p.lam / lam)), default=None)
        probes[lam] = problem.minimum(lam, max_iterations, start)
        accuracy = probes[lam].accuracy(*validation, per_class=per_class)
        if tell is not None:
            tell(Tried(lam, accuracy))
        return accuracy

    tried = search(measure)
    best = max(tried, key=lambda t: (t.accuracy, t.lam))
    probe = probes[best.lam]
    if refit:
        probe = _Problem([train, validation], classes).minimum(best.lam, max_iterations, probe)
    _tell(probe, max_iterations)
    return Sweep(probe, tried)


def search(measure: Callable[[float], float]) -> list[Tried]:
    """Every λ that was measured, in order."""
    tried = dict[int, Tried]()

    def visit(steps: Sequence[int]) -> int:
        """Returns: the best so far."""
        for step in steps:
            if _WEAKEST <= step <= _STRONGEST:
                lam = 10 ** (step / _PER_DECADE)
                tried[step] = Tried(lam, measure(lam))
        return max(tried, key=lambda step: (tried[step].accuracy, step))

    # From the strongest on, as each is soon found from one stronger.
    best, width = visit(range(_STRONGEST, _WEAKEST - 1, -_FIRST)), _FIRST
    while width > 1:
        width //= 2
        best = visit([best + width, best - width])
    return list(tried.values())


class _Problem:
    """Logistic regression of some images, for any λ.

    Args:
        parts: features and labels of images, together the set.
        classes: C.

    Raises:
        ValueError, UserError: see `fit`.
    """

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]], classes: int) -> None:
        for features_ND, labels_N in parts:
            _check(features_ND, labels_N, classes)
        self.classes, self.device = classes, parts[0][0].device
        # A class without an image would have its bias fall for ever.
        self.present = torch.cat([labels.unique() for _, labels in parts]).unique().to(self.device)
        if len(self.present) < 2:
            raise UserError(
                f"linear probe: expected images of at least 2 classes; got {len(self.present)}"
            )
        place = torch.full((classes,), -1, device=self.device)
        place[self.present] = torch.arange(len(self.present), device=self.device)
        self.images = sum(len(x) for x, _ in parts)
        self.basis_DR = _span(parts, self.images)
        self.parts = [(self._inside(x), place[y.to(self.device)]) for x, y in parts]
        self.width = self.parts[0][0].shape[1]
        self.rows = _panel(len(self.present), self.width + 1)
        self.buffer = torch.ones(
            min(self.rows, self.images), self.width + 1, dtype=torch.float64, device=self.device
        )
        self.moment_EE = self._moment()

    def minimum(self, lam: float, max_iterations: int, start: Probe | None) -> Probe:
        """By L-BFGS in coordinates V, θ = (W, b) = V A, in which the Hessian is about 1.

        Any A has the same minimum. With A = 1 it is often not found in 1,000 iterations, as
        features are correlated and their means are not 0; and the weaker λ is, the less curved the
        loss becomes on the way, for which A is chosen anew now and then.
        """
        if not 0 < lam < math.inf:
            raise ValueError(f"lam: expected a positive number; got {lam:g}")
        decay_E = torch.full_like(self.moment_EE[0], lam / self.images)
        if len(self.present) == 2:
            decay_E *= 2  # see `fit`
        decay_E[-1] = 0
        theta_CE, iterations, length = self._theta(start), 0, _ROUND
        while True:
            here = self._at(theta_CE, decay_E)
            axes = self._axes(here.curvature, decay_E)
            # Half the squared length is how far the loss is above the minimum, to second order.
            most = 2 * _TOLERANCE * here.loss
            if axes.gradient(here.gradient_CE).square().sum() <= most:
                return self._probe(theta_CE, lam, iterations, True)
            if iterations >= max_iterations:
                return self._probe(theta_CE, lam, iterations, False)
            theta_CE, done = self._round(
                theta_CE,
                decay_E,
                axes,
                min(length, max_iterations - iterations),
                math.sqrt(most / theta_CE.numel()),
            )
            if done == 0:  # as low as float64 can tell
                return self._probe(theta_CE, lam, iterations, True)
            iterations, length = iterations + done, 2 * length

    def _round(
        self, theta_CE: Tensor, decay_E: Tensor, axes: _Axes, iterations: int, tolerance: float
    ) -> tuple[Tensor, int]:
        """Where so many iterations lead from θ, and how many there were."""

        def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            v_CE = torch.from_numpy(flat).to(self.device).view_as(theta_CE)
            there = self._at(axes.theta(v_CE), decay_E)
            return there.loss, axes.gradient(there.gradient_CE).flatten().cpu().numpy()

        found = minimize(
            objective,
            axes.coordinates(theta_CE).flatten().cpu().numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": iterations, "maxls": 50, "gtol": tolerance, "ftol": 0.0},
        )
        v_CE = torch.from_numpy(found.x).to(self.device).view_as(theta_CE)
        return axes.theta(v_CE), int(found.nit)

    def _at(self, theta_CE: Tensor, decay_E: Tensor) -> _Point:
        """Mean over images of −log softmax(θ x_i)[y_i], + ½ Σ decay · θ²."""
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        squares, gradient_CE = loss.clone(), torch.zeros_like(theta_CE)
        for x, labels in self._panels():
            p = (x @ theta_CE.T).log_softmax(dim=1)
            loss -= p.gather(1, labels[:, None]).sum()
            p.exp_()
            squares += p.view(-1).dot(p.view(-1))
            p.scatter_add_(1, labels[:, None], p.new_full((len(x), 1), -1.0))
            gradient_CE.addmm_(p.T, x)
        decayed_CE = decay_E * theta_CE
        curvature = (1 - squares.item() / self.images) / len(theta_CE)
        return _Point(
            loss.item() / self.images + (decayed_CE * theta_CE).sum().item() / 2,
            gradient_CE / self.images + decayed_CE,
            curvature,
        )

    def _panels(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(n, E) float64 and their labels; the next panel takes the place of the last."""
        for features_ND, labels_N in self.parts:
            of_both = zip(features_ND.split(self.rows), labels_N.split(self.rows), strict=True)
            for x, labels in of_both:
                panel = self.buffer[: len(x)]
                panel[:, :-1] = x
                yield panel, labels

    def _moment(self) -> Tensor:
        """(E, E) mean of x xᵀ over rows from all over the set."""
        every = max(1, self.images // (_ROWS_PER_COLUMN * (self.width + 1)))
        rows_ND = torch.cat([x[::every] for x, _ in self.parts]).double()
        rows_NE = torch.cat([rows_ND, rows_ND.new_ones(len(rows_ND), 1)], dim=1)
        return rows_NE.T @ rows_NE / len(rows_NE)

    def _axes(self, curvature: float, decay_E: Tensor) -> _Axes:
        """By L Lᵀ = the Hessian, averaged over classes; a little lifted, so that it is positive."""
        hessian_EE = max(curvature, 1e-30) * self.moment_EE
        lift = 1e-12 * hessian_EE.diagonal().mean()
        lower_EE = torch.linalg.cholesky(hessian_EE + (decay_E + lift).diag())
        one_EE = torch.eye(len(lower_EE), dtype=torch.float64, device=self.device)
        return _Axes(lower_EE, torch.linalg.solve_triangular(lower_EE, one_EE, upper=False))

    def _inside(self, x_ND: Tensor) -> Tensor:
        """In coordinates of the span."""
        return x_ND if self.basis_DR is None else x_ND.double() @ self.basis_DR

    def _theta(self, start: Probe | None) -> Tensor:
        """(C, E) of the classes that are present."""
        if start is None:
            zero_E = self.moment_EE.new_zeros(self.width + 1)
            return zero_E.expand(len(self.present), -1)
        weight_CD, bias_C = start.weight_CD[self.present], start.bias_C[self.present]
        bias_C = bias_C.where(bias_C.isfinite(), 0)
        return torch.cat([self._inside(weight_CD), bias_C[:, None]], dim=1)

    def _probe(self, theta_CE: Tensor, lam: float, iterations: int, converged: bool) -> Probe:
        weight_CD, bias_C = theta_CE[:, :-1], theta_CE[:, -1]
        if self.basis_DR is not None:
            weight_CD = weight_CD @ self.basis_DR.T
        of_all_CD = weight_CD.new_zeros(self.classes, weight_CD.shape[1])
        of_all_C = bias_C.new_full((self.classes,), -math.inf)
        of_all_CD[self.present], of_all_C[self.present] = weight_CD, bias_C
        return Probe(of_all_CD, of_all_C, lam, iterations, converged)


class _Point(NamedTuple):
    """The loss at some θ.

    Attributes:
        gradient_CE: by θ.
        curvature: mean of p (1 − p) over images and classes.
    """

    loss: float
    gradient_CE: Tensor
    curvature: float


class _Axes(NamedTuple):
    """Coordinates V: θ = V L⁻¹."""

    lower_EE: Tensor
    inverse_EE: Tensor

    def theta(self, v_CE: Tensor) -> Tensor:
        return v_CE @ self.inverse_EE

    def coordinates(self, theta_CE: Tensor) -> Tensor:
        return theta_CE @ self.lower_EE

    def gradient(self, d_theta_CE: Tensor) -> Tensor:
        """By V, of that by θ."""
        return d_theta_CE @ self.inverse_EE.T


def _check(features_ND: Tensor, labels_N: Tensor, classes: int) -> None:
    if features_ND.ndim != 2 or not features_ND.is_floating_point():
        raise ValueError(
            f"features: expected floating (N, D); got {tuple(features_ND.shape)} of "
            f"{features_ND.dtype}"
        )
    if not features_ND.mean(dim=1).isfinite().all():
        raise UserError("features: expected finite numbers; got NaN or infinity")
    if labels_N.shape != features_ND.shape[:1] or labels_N.dtype != torch.int64:
        raise ValueError(
            f"labels: expected int64 ({len(features_ND)},); got {tuple(labels_N.shape)} of "
            f"{labels_N.dtype}"
        )
    if len(labels_N) and not 0 <= labels_N.min() <= labels_N.max() < classes:
        raise ValueError(
            f"labels: expected 0 to {classes - 1}; got {int(labels_N.min())} to "
            f"{int(labels_N.max())}"
        )


def _span(parts: Sequence[tuple[Tensor, Tensor]], images: int) -> Tensor | None:
    """(D, R) orthonormal columns that fewer images than features lie in, and W of least penalty."""
    if images >= parts[0][0].shape[1]:
        return None
    return torch.linalg.qr(torch.cat([x for x, _ in parts]).double().T).Q


def _panel(classes: int, width: int) -> int:
    """Rows whose features and logits, in float64, stay in a core's cache."""
    return max(64, _PANEL_BYTES // (8 * (width + 2 * classes)))


def _tell(probe: Probe, max_iterations: int) -> None:
    if not probe.converged:
        logger.warning(
            f"linear probe: λ = {probe.lam:g}: expected to converge within {max_iterations:,} "
            "iterations; it stopped there"
        )
