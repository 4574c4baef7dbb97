"""Maps of an embedding space: vectors in two dimensions, as a picture for print and as an interactive page.

The MAX_LABELS most frequent labels each have a look of their own: one of seven colors that color-blind people can tell
apart (Okabe and Ito's, without the yellow, which is faint on white), drawn filled, as a ring, or filled with a dark
edge. All others share one look, `other`. Each modality has a shape.
"""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clamplib.files import InputError, atomic_path
from clamplib.retrieval.similarity import normalize

LABEL_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#000000")
GRAY = "#a0a0a0"
MAX_LABELS = 20
OTHER, UNLABELED = "other", "no label"
SHAPES = "os^DP"  # markers of matplotlib; map.html draws the same shapes
NEIGHBORS = 15  # per point, in UMAP
PERPLEXITY = 30  # of t-SNE
MIN_DIRECTIONS = 4  # different directions that t-SNE and UMAP need
NO_VARIANCE = 1e-12  # per vector; rounding gives equal directions less than this
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "SimHei")
LEGEND_LENGTH = 28  # characters per name
TEMPLATE = Path(__file__).with_name("map.html")
PLACEHOLDER = '"DATA"'  # in the template, replaced by the data


def project(vectors: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Lays out vectors in two dimensions by cosine.

    t-SNE and UMAP start from the principal components, so that distant groups tend to stay distant.

    Args:
        vectors: [N, D], no row of which is all zeros.
        method: "pca" for any N; "tsne" or "umap" for at least MIN_DIRECTIONS different directions.
        seed: the seed of t-SNE and UMAP.

    Returns:
        Points, float32 [N, 2].

    Raises:
        ImportError: the method needs a package that is not installed.
        InputError: there are too few different directions.
        ValueError: the method is unknown, or the matrix has another shape.
    """
    if method not in ("pca", "tsne", "umap"):
        raise ValueError(f"expected pca, tsne or umap, got {method!r}")
    points, _ = pca(vectors)
    if method == "pca":
        return points
    unit, _ = normalize(vectors)
    directions = len(np.unique(unit.round(5), axis=0))
    if directions < MIN_DIRECTIONS:
        raise InputError(
            f"expected at least {MIN_DIRECTIONS} different directions for {method}, got {directions} in {len(unit)} "
            f"vectors; pca draws any number"
        )
    points = _tsne(unit, points, seed) if method == "tsne" else _umap(unit, points, seed)
    return points.astype(np.float32)


def pca(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Projects the directions of vectors onto their two principal components.

    Args:
        vectors: [N, D], with N of at least 1 and D of at least 2, no row of which is all zeros.

    Returns:
        Points, float32 [N, 2], and the components' shares of the variance, float64 [2]. The largest weight of each
        component is positive. If all directions are equal, points and shares are zero.

    Raises:
        ValueError: the shape does not fit.
    """
    if vectors.ndim != 2 or len(vectors) < 1 or vectors.shape[1] < 2:
        raise ValueError(f"expected vectors [N, D], at least 1 of 2 values, got shape {list(vectors.shape)}")
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centered = unit - unit.mean(0)
    variances, components = np.linalg.eigh(centered.T @ centered)
    if variances.sum() < NO_VARIANCE * len(vectors):
        return np.zeros((len(vectors), 2), np.float32), np.zeros(2)
    components = components[:, :-3:-1]
    components *= np.sign(components[np.abs(components).argmax(0), [0, 1]])
    shares = variances[:-3:-1].clip(0) / variances.sum()
    return (centered @ components).astype(np.float32), shares


def pca_axes(shares: np.ndarray) -> tuple[str, str]:
    """Names the axes for the shares of the variance [2] that `pca` returns."""
    first, second = shares
    return f"component 1: {first:.1%} of the variance", f"component 2: {second:.1%} of the variance"


def _tsne(unit: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(
            't-SNE needs scikit-learn; in a clone, run: pip install -c constraints.txt -e ".[maps]"'
        ) from error
    # Points start close together, so that they can still pass each other.
    return TSNE(
        perplexity=min(PERPLEXITY, (len(unit) - 1) / 3),  # at most a third of the neighbors
        metric="cosine",
        init=start / start[:, 0].std() * 1e-4,
        random_state=seed,
    ).fit_transform(unit)


def _umap(unit: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():  # about a part of UMAP that is not used here
            warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
            from umap import UMAP
    except ImportError as error:
        raise ImportError(
            'UMAP needs umap-learn; in a clone, run: pip install -c constraints.txt -e ".[maps]"'
        ) from error
    # By default UMAP drops points whose neighbors are all opposite to them, and warns that a seed needs n_jobs=1.
    return UMAP(
        n_neighbors=min(NEIGHBORS, len(unit) - 1),
        metric="cosine",
        init=start,
        disconnection_distance=np.inf,
        random_state=seed,
        n_jobs=1,
    ).fit_transform(unit)


def draw_png(
    points: np.ndarray,
    path: str | Path,
    *,
    labels: Sequence[str | None] | None = None,
    modalities: Sequence[str | None] | None = None,
    title: str = "",
    axes: tuple[str, str] = ("", ""),
) -> None:
    """Draws points as a picture.

    Args:
        points: [N, 2].
        path: the file to write; its suffix is .png, .pdf or .svg.
        labels: one per point, shown as colors.
        modalities: one per point, shown as shapes.
        title: shown above the map.
        axes: the names of the horizontal and the vertical axis.

    Raises:
        ImportError: matplotlib is not installed.
        InputError: the suffix is not one that matplotlib can write.
        ValueError: the points are not finite [N, 2], or there is not one label or modality per point.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.font_manager import fontManager
    except ImportError as error:
        raise ImportError(
            'a picture of the map needs matplotlib; in a clone, run: pip install -c constraints.txt -e ".[maps]"'
        ) from error
    points = _finite(points)
    names, label_of = _ranked(labels, len(points))
    kinds, kind_of = _ranked(modalities, len(points))
    installed = set(fontManager.get_font_names())
    settings = {
        "font.family": ["DejaVu Sans", *(font for font in CJK_FONTS if font in installed)],
        "font.size": 9,
        "text.parse_math": False,  # names are data: a `$` does not begin a formula
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # drawn as a box
        figure = Figure((6.5, 4.5), layout="constrained")
        plot = figure.add_subplot(xlabel=axes[0], ylabel=axes[1], xticks=[], yticks=[])
        plot.set_title(title, fontsize=10)
        plot.set_aspect("equal", adjustable="datalim")
        for spine in plot.spines.values():
            spine.set(color="#cccccc")
        _scatter(plot, points, np.minimum(label_of, MAX_LABELS), np.minimum(kind_of, len(SHAPES) - 1))
        entries = []  # of the legend: name, marker, color of the face, color of the edge
        if labels is not None:
            entries += [(name, "o", *_colors(look)) for look, name in enumerate(_shown(names, MAX_LABELS))]
        if modalities is not None:
            shown = _shown(kinds, len(SHAPES) - 1)
            entries += [(name, marker, "none", "#404040") for name, marker in zip(shown, SHAPES, strict=False)]
        if entries:
            _add_legend(figure, entries)
        with atomic_path(path) as temporary:
            try:
                figure.savefig(temporary, dpi=200)
            except ValueError as error:
                raise InputError(f"{path}: expected the name of a picture, such as map.png ({error})") from error


def _scatter(plot: Any, points: np.ndarray, look_of: np.ndarray, shape_of: np.ndarray) -> None:
    """Draws points [N, 2], each with its look and its shape, [N] each."""
    order = np.random.default_rng(0).permutation(len(points))  # so that no label hides another
    order = order[np.argsort(look_of[order] < MAX_LABELS, kind="stable")]  # `other` is drawn first
    size = float(np.clip(140 / np.sqrt(len(points)), 2, 6))  # typographic points
    for shape, marker in enumerate(SHAPES):
        chosen = order[shape_of[order] == shape]
        colors = [_colors(look) for look in look_of[chosen]]
        plot.scatter(
            *points[chosen].T,
            size**2,
            [face for face, _ in colors],
            marker=marker,
            edgecolors=[edge for _, edge in colors],
            linewidths=0.7,
            alpha=0.85,
        )


def _add_legend(figure: Any, entries: Sequence[tuple[str, str, str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name, marker, face, edge in entries:
        handles.append(Line2D([], [], ls="", marker=marker, mfc=face, mec=edge, mew=0.7, ms=5.5, label=_short(name)))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, handletextpad=0.1, fontsize=8)


def draw_html(
    points: np.ndarray,
    path: str | Path,
    *,
    titles: Sequence[str],
    labels: Sequence[str | None] | None = None,
    modalities: Sequence[str | None] | None = None,
    details: Sequence[str] | None = None,
    title: str = "",
    axes: tuple[str, str] = ("", ""),
) -> None:
    """Writes points as one interactive page, which needs no other file and no network.

    The page can be opened from a disk. It stays fast with 20,000 points.

    Args:
        points: [N, 2].
        path: the file to write.
        titles: one per point, by which it can be found.
        labels: one per point, shown as colors.
        modalities: one per point, shown as shapes.
        details: one per point, shown below its title; may have several lines.
        title: the title of the page.
        axes: the names of the horizontal and the vertical axis.

    Raises:
        ValueError: the points are not finite [N, 2], or there is not one title, label, modality or detail per point.
    """
    points = _finite(points)
    names, label_of = _ranked(labels, len(points))
    kinds, kind_of = _ranked(modalities, len(points))
    lowest = points.min(0)
    placed = (points - lowest) / (max(np.ptp(points, axis=0)) or 1)
    data = {
        "title": title,
        "axes": axes,
        "points": placed.round(5).tolist(),
        "titles": _one_each(titles, len(points), "titles"),
        "details": None if details is None else _one_each(details, len(points), "details"),
        "labels": None if labels is None else names,
        "label": label_of.tolist(),
        "modalities": None if modalities is None else kinds,
        "modality": kind_of.tolist(),
        "colors": LABEL_COLORS,
        "gray": GRAY,
        "looks": MAX_LABELS,
        "other": OTHER,
    }
    # "\u003c" is "<" in JSON. With it, no title can end the script element.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = TEMPLATE.read_text(encoding="utf-8").replace(PLACEHOLDER, text)
    with atomic_path(path) as temporary:
        # A lone surrogate, which is how Python represents bytes of file names that are not UTF-8, becomes "?".
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _finite(points: np.ndarray) -> np.ndarray:
    """Returns the points as float64. Raises ValueError if they are not finite numbers [N, 2]."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"expected finite points [N, 2], at least one, got shape {list(points.shape)}")
    return points


def _one_each(values: Sequence[str], count: int, name: str) -> list[str]:
    if len(values) != count:
        raise ValueError(f"expected {count} {name}, one per point, got {len(values)}")
    return list(values)


def _ranked(values: Sequence[str | None] | None, count: int) -> tuple[list[str], np.ndarray]:
    """Returns the distinct values, the most frequent first, and the number of each point's value, int64 [N]."""
    if values is None:
        return [""], np.zeros(count, np.int64)
    values = [value or UNLABELED for value in _one_each(values, count, "labels or modalities")]
    names = [name for name, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[value] for value in values])


def _colors(look: int) -> tuple[str, str]:
    """Returns the colors of face and edge for a look."""
    if look == MAX_LABELS:
        return GRAY, GRAY
    style, number = divmod(look, len(LABEL_COLORS))
    color = LABEL_COLORS[number]
    return [(color, color), ("white", color), (color, "black")][style]


def _shown(names: list[str], most: int) -> list[str]:
    """Returns the names in a legend: the first `most`, and one for the rest."""
    return [*names[:most], OTHER] if len(names) > most else names


def _short(name: str) -> str:
    return name if len(name) <= LEGEND_LENGTH else name[: LEGEND_LENGTH - 1] + "…"
