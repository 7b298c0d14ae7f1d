"""Does the model say that a phrase names something here? Functions of counts of (image, phrase) pairs.

A ratio without a denominator is nan, so that nobody averages an invented number.
"""

from __future__ import annotations

from math import nan


def ratio(part: float, whole: float) -> float:
    """part / whole; nan when there is nothing to divide by."""
    return part / whole if whole else nan


def precision(true_positives: float, false_positives: float) -> float:
    """Share of the pairs answered with a detection that are positive; nan when none was."""
    return ratio(true_positives, true_positives + false_positives)


def recall(true_positives: float, false_negatives: float) -> float:
    """Share of the positive pairs answered with a detection; nan when no pair is positive."""
    return ratio(true_positives, true_positives + false_negatives)


def f1(true_positives: float, false_positives: float, false_negatives: float) -> float:
    """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN).

    0 when nothing was found or everything found was wrong; nan when there was nothing to find and nothing found.
    """
    return ratio(2 * true_positives, 2 * true_positives + false_positives + false_negatives)
