"""How good class probabilities are: the metrics that Tomihari and Sato's code reports."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

FloatArray = NDArray[np.float64]

_BINS = 15


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of logits against the classes that are right.

    Attributes:
        accuracy: Share of samples classified right.
        worst: Accuracy of the class where it is smallest.
        mean: Mean accuracy of the classes.
        best: Accuracy of the class where it is largest.
        ece: Expected calibration error: mean difference of confidence and accuracy over bins of confidence.
        mce: Largest such difference.
        brier: Mean squared error of the probabilities, over samples and classes.
        nll: Mean negative log-likelihood, in nats.
        norm: Mean L2 norm of a sample's logits.
    """

    accuracy: float
    worst: float
    mean: float
    best: float
    ece: float
    mce: float
    brier: float
    nll: float
    norm: float


def class_metrics(logits: FloatArray, labels: NDArray[np.int64]) -> ClassMetrics:
    """Compute all metrics.

    Args:
        logits: (samples, classes).
        labels: The right classes (samples,).
    """
    log_probabilities = log_softmax(logits, axis=1)
    probabilities = np.exp(log_probabilities)
    right = probabilities.argmax(axis=1) == labels
    of_class = [float(right[labels == label].mean()) for label in np.unique(labels)]
    ece, mce = calibration_errors(probabilities.max(axis=1), right)
    return ClassMetrics(
        float(right.mean()),
        min(of_class),
        float(np.mean(of_class)),
        max(of_class),
        ece,
        mce,
        float(np.mean((probabilities - np.eye(logits.shape[1])[labels]) ** 2)),
        float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        float(np.linalg.norm(logits, axis=1).mean()),
    )


def calibration_errors(confidences: FloatArray, right: NDArray[np.bool_]) -> tuple[float, float]:
    """Return expected and largest calibration error over 15 bins of equal width, those without samples left out.

    Args:
        confidences: Probability of the class that was chosen (samples,).
        right: Whether it is the right one (samples,).
    """
    bins = np.clip(np.ceil(confidences * _BINS).astype(int) - 1, 0, _BINS - 1)  # each with its upper end
    counts = np.bincount(bins, minlength=_BINS)
    gaps = np.abs(np.bincount(bins, weights=confidences - right, minlength=_BINS))  # summed over a bin's samples
    return float(gaps.sum() / len(right)), float(np.max(gaps[counts > 0] / counts[counts > 0]))
