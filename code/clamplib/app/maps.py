"""Pictures of the space: vectors in two dimensions, as a picture for print and as a page to explore.

The LABELS labels of most points have looks of their own: one of seven colors that color-blind people can tell apart
(Okabe and Ito's, without the yellow, which fades on white), and filled, or a ring, or filled with a dark edge. The rest
look alike, as `other`. A modality is a shape.
"""

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clamplib.files import InputError, atomic_path
from clamplib.retrieval.similarity import normalize

COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#000000")
GRAY = "#a0a0a0"
LABELS = 20
OTHER, UNLABELED = "other", "no label"
SHAPES = "os^DP"  # in the letters of matplotlib; map.html draws the same
NEIGHBORS = 15  # of a point, in UMAP
PERPLEXITY = 30  # of t-SNE
FEWEST = 4  # directions that t-SNE and UMAP can lay out
NO_VARIANCE = 1e-12  # a vector; what rounding leaves of equal directions is less
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "SimHei")
LEGEND_LENGTH = 28  # characters of a name
PAGE = Path(__file__).with_name("map.html")
DATA = '"DATA"'  # what stands in the page for its data


def project(vectors: np.ndarray, method: str = "pca", seed: int = 0) -> np.ndarray:
    """Vectors [N, D], none of zeros, laid out by cosine in two dimensions: float32 [N, 2].

    method: `pca` for any N, `tsne` or `umap` for at least FEWEST different directions (else InputError). The
    latter begin at the former, so that what is far apart tends to stay so. ImportError says what to install.
    """
    if method not in ("pca", "tsne", "umap"):
        raise ValueError(f"expected pca, tsne or umap, got {method!r}")
    points, _ = pca(vectors)
    if method == "pca":
        return points
    unit, _ = normalize(vectors)
    directions = len(np.unique(unit.round(5), axis=0))
    if directions < FEWEST:
        raise InputError(
            f"expected at least {FEWEST} different directions for {method}, got {directions} in {len(unit)} "
            f"vectors; pca draws any number"
        )
    layout = _tsne if method == "tsne" else _umap
    return layout(unit, points, seed).astype(np.float32)


def pca(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two principal components of the directions of vectors [N, D], and their shares of the variance.

    Returns (float32 [N, 2], float64 [2]). The largest weight of each component is positive. Where all directions
    are equal, points and shares are zero.
    """
    if vectors.ndim != 2 or len(vectors) < 1 or vectors.shape[1] < 2:
        raise ValueError(f"expected vectors [N, D], at least 1 of 2 values, got shape {list(vectors.shape)}")
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centerd = unit - unit.mean(0)
    variances, components = np.linalg.eigh(centerd.T @ centerd)
    if variances.sum() < NO_VARIANCE * len(vectors):
        return np.zeros((len(vectors), 2), np.float32), np.zeros(2)
    components = components[:, :-3:-1]
    components *= np.sign(components[np.abs(components).argmax(0), [0, 1]])
    shares = variances[:-3:-1].clip(0) / variances.sum()
    return (centerd @ components).astype(np.float32), shares


def pca_axes(shares: np.ndarray) -> tuple[str, str]:
    """Names of the axes for the shares [2] that `pca` gives."""
    first, second = (f"component {number}: {share:.1%} of the variance" for number, share in enumerate(shares, 1))
    return first, second


def _tsne(unit: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError('t-SNE needs scikit-learn: pip install "clamplib[maps]"') from error
    # begun small, so that points can still pass each other; perplexity is at most a third of the neighbors
    return TSNE(
        perplexity=min(PERPLEXITY, (len(unit) - 1) / 3),
        metric="cosine",
        init=start / start[:, 0].std() * 1e-4,
        random_state=seed,
    ).fit_transform(unit)


def _umap(unit: np.ndarray, start: np.ndarray, seed: int) -> np.ndarray:
    try:
        with warnings.catch_warnings():  # of a part of UMAP that is not used here
            warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
            from umap import UMAP
    except ImportError as error:
        raise ImportError('UMAP needs umap-learn: pip install "clamplib[maps]"') from error
    # by default UMAP drops a point whose neighbors are all opposite to it, and warns of the one job for a seed
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
    """Points [N, 2] as a picture, whose suffix says what kind: .png, .pdf or .svg.

    ImportError where matplotlib is not installed, InputError for a suffix that it cannot write.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.font_manager import fontManager
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise ImportError('a picture of the space needs matplotlib: pip install "clamplib[maps]"') from error
    points = _finite(points)
    names, label_of = _ranked(labels, len(points))
    kinds, kind_of = _ranked(modalities, len(points))
    look_of, shape_of = np.minimum(label_of, LABELS), np.minimum(kind_of, len(SHAPES) - 1)
    order = np.random.default_rng(0).permutation(len(points))  # so that no label lies on all others
    order = order[np.argsort(look_of[order] < LABELS, kind="stable")]  # but on `other`
    size = float(np.clip(140 / np.sqrt(len(points)), 2, 6))  # in points, as of a font
    installed = set(fontManager.get_font_names())
    settings = {
        "font.family": ["DejaVu Sans", *(font for font in CJK_FONTS if font in installed)],
        "font.size": 9,
        "text.parse_math": False,  # names are data: `$` begins no formula
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # a box stands for it
        figure = Figure((6.5, 4.5), layout="constrained")
        plot = figure.add_subplot(xlabel=axes[0], ylabel=axes[1], xticks=[], yticks=[])
        plot.set_title(title, fontsize=10)
        plot.set_aspect("equal", adjustable="datalim")
        for spine in plot.spines.values():
            spine.set(color="#cccccc")
        for shape, marker in enumerate(SHAPES):
            chosen = order[shape_of[order] == shape]
            faces, edges = ([_colors(look)[part] for look in look_of[chosen]] for part in (0, 1))
            style = {"marker": marker, "edgecolors": edges, "linewidths": 0.7, "alpha": 0.85}
            plot.scatter(*points[chosen].T, size**2, faces, **style)
        keys = []
        if labels is not None:
            keys += [(name, "o", *_colors(look)) for look, name in enumerate(_shown(names, LABELS))]
        if modalities is not None:
            keys += [(name, SHAPES[i], "none", "#404040") for i, name in enumerate(_shown(kinds, len(SHAPES) - 1))]
        if keys:
            handles = [
                Line2D([], [], ls="", marker=marker, mfc=face, mec=edge, mew=0.7, ms=5.5, label=_short(name))
                for name, marker, face, edge in keys
            ]
            figure.legend(handles=handles, loc="outside right upper", frameon=False, handletextpad=0.1, fontsize=8)
        with atomic_path(path) as temporary:
            try:
                figure.savefig(temporary, dpi=200)
            except ValueError as error:
                raise InputError(f"{path}: expected the name of a picture, such as map.png ({error})") from error


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
    """Points [N, 2] as one page that needs no other file and no network, with a title for each to find it by.

    details: what more is shown at a point, in lines. It may be opened from a disk, and holds 20,000 points with ease.
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
        "colors": COLORS,
        "gray": GRAY,
        "looks": LABELS,
        "other": OTHER,
    }
    # in JSON, "\u003c" is "<": no title can end the script that holds it
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    page = PAGE.read_text(encoding="utf-8").replace(DATA, text)
    with atomic_path(path) as temporary:
        # half a surrogate, which is how Python holds a byte of a file name that is no UTF-8, becomes "?"
        temporary.write_text(page, encoding="utf-8", errors="replace")


def _finite(points: np.ndarray) -> np.ndarray:
    """The points as float64; ValueError if they are no [N, 2] of finite numbers."""
    points = np.asarray(points, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or not np.isfinite(points).all():
        raise ValueError(f"expected finite points [N, 2], at least one, got shape {list(points.shape)}")
    return points


def _one_each(values: Sequence[str], count: int, name: str) -> list[str]:
    if len(values) != count:
        raise ValueError(f"expected one each of {name} for {count} points, got {len(values)}")
    return list(values)


def _ranked(values: Sequence[str | None] | None, count: int) -> tuple[list[str], np.ndarray]:
    """The different values, those of most points first, and for each point the number of its own: int64 [N]."""
    if values is None:
        return [""], np.zeros(count, np.int64)
    values = [value or UNLABELED for value in _one_each(values, count, "labels or modalities")]
    names = [name for name, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]
    number = {name: i for i, name in enumerate(names)}
    return names, np.array([number[value] for value in values])


def _colors(look: int) -> tuple[str, str]:
    """Of the face and of the edge."""
    if look == LABELS:
        return GRAY, GRAY
    style, color = divmod(look, len(COLORS))
    return [(COLORS[color],) * 2, ("white", COLORS[color]), (COLORS[color], "black")][style]


def _shown(names: list[str], most: int) -> list[str]:
    """The names in a legend: the first `most`, and one for the rest."""
    return [*names[:most], OTHER] if len(names) > most else names


def _short(name: str) -> str:
    return name if len(name) <= LEGEND_LENGTH else name[: LEGEND_LENGTH - 1] + "…"
