"""Folders of feature vectors, compared by cosine.

A feature file is a .npy of one vector, [D] or [1, D]; its key is its folder below the root and its name up to
the first dot, so that `a.0.npy` and `a.1.npy` share a key. Each folder is read once, into one matrix of unit
rows; every comparison is a matrix product, a block at a time. Vectors of two spaces (see `space`) are not
compared.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.files import InputError, key, load_array, show, walk
from clamplib.space import check_same_space, read_space

BLOCK_VALUES = 1 << 25  # similarities held at a time: 128 MiB of float32


@dataclass(frozen=True)
class Features:
    """The vectors of one folder, in the order of their paths."""

    keys: list[str]
    matrix: np.ndarray  # float32 [N, D], each row divided by its length
    lengths: np.ndarray  # float32 [N], what the rows were divided by
    paths: list[Path]
    failures: list[Exception]  # files that hold no usable vector, left out
    space: dict | None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def raw(self) -> np.ndarray:
        """The vectors with the lengths that they were extracted with, float32 [N, D]."""
        return self.lengths[:, None] * self.matrix


def load_vector(path: str | Path) -> np.ndarray:
    """The vector in a .npy file as float32 [D]; InputError says what is wrong with it."""
    array = load_array(path)
    vector = array[0] if array.ndim == 2 and len(array) == 1 else array
    if vector.ndim != 1 or not vector.size:
        hint = "; global vectors come from extract_clamp3.py --get_global" if array.ndim == 3 else ""
        raise InputError(f"{show(path)}: expected one vector, [1, D] or [D], got shape {list(array.shape)}{hint}")
    if not vector.any():
        raise InputError(f"{show(path)}: expected a direction, got a vector of zeros, which has no cosine")
    return vector


def load_features(folder: str | Path) -> Features:
    """All .npy files under `folder` as one matrix of unit rows.

    A file that holds no usable vector, or one of another width than most, is left out and listed in
    `failures`. InputError where no file is left, or where features of two spaces lie together.
    """
    space = read_space(folder)
    vectors: dict[Path, np.ndarray] = {}
    failures = []
    for path in walk(folder, (".npy",)):
        try:
            vectors[path] = load_vector(path)
        except (InputError, OSError) as error:
            failures.append(error)
    if not vectors:
        raise InputError(
            f"{show(folder)}: none of its {len(failures)} .npy files holds a vector; the first: {failures[0]}"
        )
    width = Counter(vector.size for vector in vectors.values()).most_common(1)[0][0]
    for path in [path for path, vector in vectors.items() if vector.size != width]:
        got = vectors.pop(path).size
        failures.append(InputError(f"{show(path)}: expected {width} values like most features here, got {got}"))
    paths = list(vectors)
    matrix, lengths = normalize(np.stack(list(vectors.values())))
    return Features([key(path, folder) for path in paths], matrix, lengths, paths, failures, space)


def normalize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[N, D], no row of zeros -> rows of length 1, float32 [N, D], and their former lengths, float32 [N]."""
    lengths = np.linalg.norm(vectors, axis=1).astype(np.float32)
    return (vectors / lengths[:, None]).astype(np.float32, copy=False), lengths


def unit_mean(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction float64 [D] and the length of the mean of vectors [N, D].

    Raises:
        InputError: there are no vectors, or they add up to zero.
    """
    if not len(vectors):
        raise InputError("expected 1 or more vectors in each set, got none")
    mean = np.mean(vectors, axis=0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    if not length:
        raise InputError("expected mean vectors with a direction, but the vectors of one set add up to zero")
    return mean / length, length


def load_folders(query_folder: str | Path, reference_folder: str | Path) -> tuple[Features, Features]:
    """The features of two folders, or of a file and a folder. InputError where they cannot be compared."""
    queries, references = load_features(query_folder), load_features(reference_folder)
    check_same_space(query_folder, queries.space, reference_folder, references.space)
    width, expected = queries.matrix.shape[1], references.matrix.shape[1]
    if width != expected:
        raise InputError(
            f"{show(query_folder)}: expected {expected} values per vector as in {show(reference_folder)}, got {width}"
        )
    return queries, references


def search(query: np.ndarray, references: np.ndarray, top_k: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The closest references of each query.

    query: [Q, D] and references: [N, D], unit rows. Returns (rows int64 [Q, k], similarities float32 [Q, k]),
    closest first and ties in the order of the references, with k the smaller of top_k and N.
    """
    if top_k < 1:
        raise ValueError(f"expected top_k of at least 1, got {top_k}")
    top_k = min(top_k, len(references))
    rows = np.empty((len(query), top_k), np.int64)
    scores = np.empty((len(query), top_k), np.float32)
    step = max(1, BLOCK_VALUES // len(references))
    for start in range(0, len(query), step):
        similarity = query[start : start + step] @ references.T
        for i, row in enumerate(similarity, start):
            least = np.partition(row, -top_k)[-top_k]
            best = np.flatnonzero(row >= least)
            rows[i] = best[np.argsort(-row[best], kind="stable")][:top_k]
            scores[i] = row[rows[i]]
    return rows, scores
