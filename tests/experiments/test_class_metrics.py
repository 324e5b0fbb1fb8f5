"""Metrics of class probabilities against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from hvp_engine.experiments.class_metrics import calibration_errors, class_metrics


def test_metrics_of_a_case_that_can_be_done_by_hand() -> None:
    logits = np.log(np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]]))
    found = class_metrics(logits, np.array([0, 1, 1]))
    assert found.accuracy == pytest.approx(2 / 3)
    assert (found.worst, found.mean, found.best) == (0.5, 0.75, 1.0)
    assert found.nll == pytest.approx(-np.log([0.8, 0.4, 0.9]).mean())
    assert found.brier == pytest.approx((0.04 + 0.36 + 0.01) / 3)
    assert found.norm == pytest.approx(np.linalg.norm(logits, axis=1).mean())


def test_calibration_compares_confidence_and_accuracy_bin_by_bin() -> None:
    confidences = np.array([0.99, 0.97, 0.50, 0.52, 0.50])  # two bins of 1/15
    right = np.array([True, False, True, True, False])
    expected, largest = calibration_errors(confidences, right)
    first, second = abs(0.98 - 0.5), abs(confidences[2:].mean() - 2 / 3)
    assert expected == pytest.approx((2 * first + 3 * second) / 5)
    assert largest == pytest.approx(first)


def test_a_bin_contains_its_upper_end() -> None:
    expected, _ = calibration_errors(np.array([1.0, 14 / 15]), np.array([True, True]))
    assert expected == pytest.approx((1 / 15) / 2)


def test_certain_and_right_is_perfect() -> None:
    found = class_metrics(np.array([[50.0, 0.0], [0.0, 50.0]]), np.array([0, 1]))
    assert (found.accuracy, found.ece) == (1.0, pytest.approx(0.0, abs=1e-12))
