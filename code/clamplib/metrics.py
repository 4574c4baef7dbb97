"""Retrieval metrics: arrays in, numbers out.

Conventions, for every function here: a similarity matrix has one row a query and one column a reference;
larger is closer; ranks start at 1; a tie counts for the right reference. MRR is the mean of 1 / rank, Hit@k
the share of queries whose right reference is among the first k.
"""

from collections.abc import Sequence

import numpy as np

# A float32 dot product varies by about 1e-7 with its place in a matrix product. What is closer than this is
# a tie, so that exact duplicates always are one.
TIE_TOLERANCE = 1e-6


def ranks(similarity: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The rank of each query's right reference.

    similarity: [Q, N]; target: [Q], the column of the right reference. Returns int64 [Q], from 1 to N.
    """
    similarity, target = np.asarray(similarity), np.asarray(target)
    if similarity.ndim != 2 or target.shape != similarity.shape[:1]:
        raise ValueError(f"expected similarity [Q, N] and target [Q], got {similarity.shape} and {target.shape}")
    right = np.take_along_axis(similarity, target[:, None], axis=1)
    return 1 + (similarity > right + TIE_TOLERANCE).sum(axis=1)


def retrieval_metrics(ranks: np.ndarray, at: Sequence[int] = (1, 10, 100)) -> dict[str, float]:
    """{"mrr": ..., "hit@1": ..., ...} of the ranks [Q]. ValueError where there are none."""
    ranks = np.asarray(ranks)
    if not ranks.size:
        raise ValueError("no ranks: a metric needs at least one query")
    hits = {f"hit@{k}": float((ranks <= k).mean()) for k in at}
    return {"mrr": float((1 / ranks).mean()), **hits}
