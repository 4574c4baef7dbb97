"""Evaluation of vectors: metrics, distances between sets, labels, a linear probe, zero-shot classification."""
