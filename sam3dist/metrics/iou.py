"""Overlap of two regions, as functions of pixel counts."""

from __future__ import annotations


def iou(intersection: float, predicted: float, truth: float) -> float:
    """Pixels in both over pixels in either; 1 when both regions are empty, so 0 when exactly one is."""
    union = predicted + truth - intersection
    return intersection / union if union else 1.0


def dice(intersection: float, predicted: float, truth: float) -> float:
    """Twice the pixels in both over the sum of the two areas; 1 when both regions are empty."""
    total = predicted + truth
    return 2 * intersection / total if total else 1.0
