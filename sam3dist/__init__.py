"""Distil SAM3 into a Pareto front of small students. Plain PyTorch: nothing here imports ray."""

__version__ = "0.1.0"
