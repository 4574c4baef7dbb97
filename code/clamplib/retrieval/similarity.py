"""Folders of feature vectors, compared by cosine, and the one search that everything here uses.

A feature file is a .npy file of one vector, [D] or [1, D]. Its key is its folder below the root and its name up to the
first dot, so that `a.0.npy` and `a.1.npy` share a key. A folder is read once, into one matrix of unit rows. Comparisons
are matrix products, computed in blocks so that memory is bounded. Vectors of two spaces (see `space`) are never
compared.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clamplib.files import InputError, key, load_array, show, walk
from clamplib.space import check_same_space, read_space

FLOAT32 = np.finfo(np.float32)
BLOCK_VALUES = 1 << 25  # similarities, or values of vectors, in memory at a time: 128 MiB of float32
COPY_COST = 8  # rows that are multiplied in place in the time that copying one row out takes


@dataclass(frozen=True)
class Features:
    """The vectors of one folder, in the order of their paths."""

    keys: list[str]
    matrix: np.ndarray  # float32 [N, D], unit rows
    lengths: np.ndarray  # float32 [N], the lengths of the rows before they were normalized
    paths: list[Path]
    failures: list[Exception]  # one for each file that was left out because it holds no usable vector
    space: dict | None

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def raw(self) -> np.ndarray:
        """The vectors with their original lengths, float32 [N, D]."""
        return self.lengths[:, None] * self.matrix


def load_vector(path: str | Path) -> np.ndarray:
    """Reads one vector from a .npy file.

    Returns:
        The vector, float32 [D].

    Raises:
        InputError: the file does not hold one vector, or the vector has no direction in float32: it is all zeros, or
            its length is too small or too large.
    """
    array = load_array(path)
    vector = array[0] if array.ndim == 2 and len(array) == 1 else array
    if vector.ndim != 1 or not vector.size:
        hint = "; global vectors come from extract_clamp3.py --get_global" if array.ndim == 3 else ""
        raise InputError(f"{show(path)}: expected one vector, [1, D] or [D], got shape {list(array.shape)}{hint}")
    if not vector.any():
        raise InputError(f"{show(path)}: expected a direction, got a vector of zeros, which has no cosine")
    length = _lengths(vector[None])[0]
    if not FLOAT32.tiny <= length <= FLOAT32.max:
        raise InputError(f"{show(path)}: expected a vector whose length float32 can hold, got the length {length:.3g}")
    return vector


def load_features(folder: str | Path) -> Features:
    """Reads all .npy files under a folder into one matrix of unit rows.

    A file is left out, and listed in `failures`, if it holds no usable vector or if its width differs from that of
    most files.

    Raises:
        InputError: no file is left, or the folder mixes features of two spaces.
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
    matrix, lengths = normalize(np.stack(list(vectors.values())), in_place=True)
    return Features([key(path, folder) for path in paths], matrix, lengths, paths, failures, space)


def load_folders(query_folder: str | Path, reference_folder: str | Path) -> tuple[Features, Features]:
    """Reads the features of two folders, or of a file and a folder, that are to be compared.

    Raises:
        InputError: one of them cannot be read, or their spaces or widths differ.
    """
    queries, references = load_features(query_folder), load_features(reference_folder)
    check_same_space(query_folder, queries.space, reference_folder, references.space)
    width, expected = queries.matrix.shape[1], references.matrix.shape[1]
    if width != expected:
        raise InputError(
            f"{show(query_folder)}: expected {expected} values per vector as in {show(reference_folder)}, got {width}"
        )
    return queries, references


def normalize(vectors: np.ndarray, *, in_place: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Scales vectors to length 1.

    Args:
        vectors: [N, D], no row of which is all zeros.
        in_place: changes the vectors, float32, instead of copying them.

    Returns:
        The unit rows, float32 [N, D], and the original lengths, float32 [N].
    """
    lengths = _lengths(vectors).astype(np.float32)
    units = np.divide(vectors, lengths[:, None], out=vectors if in_place else None)
    return units.astype(np.float32, copy=False), lengths


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Lengths of vectors [N, D], float64 [N]: the squares of small and large float32 numbers are not float32."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def unit_mean(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Averages vectors [N, D].

    Returns:
        The direction of the mean, float64 [D] of length 1, and the length of the mean.

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


def search(
    queries: np.ndarray, references: np.ndarray, top_k: int = 10, rows: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the references that are most similar to each query.

    Args:
        queries: float32 [Q, D], unit rows.
        references: float32 [N, D], unit rows; may be mapped from a file.
        top_k: how many references to return per query.
        rows: int64 [M], ascending: the rows of `references` to search among; all of them if None.

    Returns:
        The rows of the references, int64 [Q, k], and their similarities, float32 [Q, k], where k is the smaller of
        `top_k` and the number of references searched. The most similar comes first; ties keep the references' order.

    Raises:
        ValueError: `top_k` is below 1.
    """
    if top_k < 1:
        raise ValueError(f"expected top_k of at least 1, got {top_k}")
    top_k = min(top_k, len(references if rows is None else rows))
    best = np.zeros((len(queries), top_k), np.int64)
    similarities = np.full((len(queries), top_k), -np.inf, np.float32)
    searched = 0
    for numbers, block, kept in _blocks_with(references, rows, len(queries)):
        places = slice(None) if kept is None else np.flatnonzero(kept)
        count = len(numbers[places])
        block_k = min(top_k, count)
        for start, products in similarity_blocks(queries, block):
            for query, row in enumerate(products, start):
                # Only what reaches the worst result so far is sorted. After the first block that is next to nothing.
                if searched >= top_k:
                    least = similarities[query, -1]
                else:
                    least = np.partition(row[places], -block_k)[-block_k]
                near = np.flatnonzero(row >= least)
                if kept is not None:
                    near = near[kept[near]]
                found = np.concatenate([similarities[query], row[near]])
                order = np.argsort(-found, kind="stable")[:top_k]
                best[query] = np.concatenate([best[query], numbers[near]])[order]
                similarities[query] = found[order]
        searched += count
    return best, similarities


def _blocks_with(
    matrix: np.ndarray, rows: np.ndarray | None, queries: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Divides a matrix [N, D] into blocks that hold the given rows, or all rows.

    Few rows are copied out. Of many, the whole block is multiplied in place, other rows included.

    Yields:
        A block [n, D], after the numbers of its rows, int64 [n], and before what tells the given rows from the others,
        bool [n], or None where there are no others.
    """
    # Large blocks are multiplied fastest. Memory bounds the values that are copied, and the similarities.
    width = matrix.shape[1]
    step = max(1, BLOCK_VALUES // max(1, width // COPY_COST, min(2 * queries, width)))
    for start in range(0, len(matrix), step):
        if rows is None:
            numbers = np.arange(start, min(start + step, len(matrix)))
        else:
            first, last = np.searchsorted(rows, (start, start + step))
            numbers = rows[first:last]
        if not len(numbers):
            continue
        every = np.arange(numbers[0], numbers[-1] + 1)
        if len(numbers) == len(every):
            yield numbers, matrix[every[0] : every[-1] + 1], None
        elif len(numbers) * COPY_COST < len(every):
            yield numbers, matrix[numbers], None
        else:
            kept = np.zeros(len(every), bool)
            kept[numbers - every[0]] = True
            yield every, matrix[every[0] : every[-1] + 1], kept


def row_blocks(matrix: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the given rows [M], ascending, of a matrix [N, D] in blocks of at most BLOCK_VALUES values.

    Consecutive rows are not copied.
    """
    step = max(1, BLOCK_VALUES // matrix.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        consecutive = block[-1] - block[0] + 1 == len(block)
        yield matrix[block[0] : block[-1] + 1] if consecutive else matrix[block]


def similarity_blocks(queries: np.ndarray, references: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Multiplies queries [Q, D] with references [N, D] in blocks of at most BLOCK_VALUES similarities.

    Yields:
        The number of the block's first query, and the similarities [q, N] of its queries.
    """
    step = max(1, BLOCK_VALUES // len(references))
    for start in range(0, len(queries), step):
        yield start, queries[start : start + step] @ references.T
