"""The commands of `clamp3`: each takes the parsed command line and returns an Answer.

The help texts in `cli` say what each command and option does. This module imports torch, so `cli` imports
it only to run a command.
"""

import argparse
import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from clamplib.app.demo import TUNES, run_demo
from clamplib.command import limits_of, report_left_out
from clamplib.embedding.cache import VectorCache
from clamplib.embedding.collections import (
    Collection,
    aliases,
    check_found,
    embed_folder,
    embed_sources,
    find_sources,
    open_collection,
    update_index,
)
from clamplib.embedding.encoder import CLaMP3Encoder
from clamplib.evaluation import distances, metrics, pairs
from clamplib.evaluation.labels import feature_labels
from clamplib.evaluation.zero_shot import describe_judgment, judge
from clamplib.files import InputError, atomic_path, key, read_object, show
from clamplib.formats.score_files import read_title
from clamplib.retrieval import similarity
from clamplib.retrieval.index import ExactIndex, Index, Match
from clamplib.retrieval.milvus import MilvusIndex

BY_FOLDER, BY_MODALITY = "folders", "modalities"


@dataclass(frozen=True)
class Answer:
    """The result of a command."""

    text: str  # for people
    data: dict  # the same, for --json
    failures: list[dict[str, str]] = field(default_factory=list)  # file, error; the exit status is 1 if there are any


# ------------------------------------------------------------------------------------------- commands


def embed(args: argparse.Namespace) -> Answer:
    report = embed_folder(
        _load_encoder(args),
        args.folder,
        args.output,
        temporal=args.temporal,
        cache=_open_cache(args),
        workers=args.workers,
        backend=args.backend,
    )
    return Answer(report.summary(), {"done": report.done, "skipped": report.skipped}, report.failures)


def search_collection(args: argparse.Namespace) -> Answer:
    encoder = _load_encoder(args)
    query = _open(args, args.query, encoder).matrix if _is_file(args.query) else encoder.encode([args.query])
    if len(query) != 1:
        raise InputError(f"{show(args.query)}: expected one query, got {len(query)}")
    if args.milvus or (args.library and _is_index(args.library)):
        hits, failures = _search_index(args, encoder, query), []
    elif args.library:
        hits, failures = _search_folder(args, encoder, query)
    else:
        raise InputError("expected a folder or an index to search, or --milvus URI")
    text = "\n".join(_format_hit(hit.similarity, hit.path) for hit in hits)
    records = [{"path": hit.path, "modality": hit.modality, "similarity": hit.similarity} for hit in hits]
    return Answer(text, {"query": args.query, "hits": records}, failures)


def _search_index(args: argparse.Namespace, encoder: CLaMP3Encoder, query: np.ndarray) -> list[Match]:
    below = os.path.abspath(args.below) if args.below else None
    with _open_index(args.milvus or args.library, encoder.space) as index:
        return index.search(query, args.top_k, folder=below, label=args.label, modality=args.modality)[0]


def _search_folder(
    args: argparse.Namespace, encoder: CLaMP3Encoder, query: np.ndarray
) -> tuple[list[Match], list[dict[str, str]]]:
    """Returns hits and failures."""
    if args.below or args.label:
        raise InputError("--below and --label need an index (see clamp3 index); for a folder, name its sub-folder")
    opened = _open(args, args.library, encoder)
    modalities = opened.modalities
    kept = [row for row, modality in enumerate(modalities) if args.modality in (None, modality)]
    if not kept:
        raise InputError(f"{show(args.library)}: expected {args.modality} files, found none")
    [rows], [similarities] = similarity.search(query, opened.matrix[kept], args.top_k)
    hits = []
    for place, value in zip(rows, similarities.tolist(), strict=True):
        row = kept[place]
        hits.append(Match(path=str(opened.sources[row]), label="", modality=modalities[row], similarity=value))
    return hits, opened.failures


def score(args: argparse.Namespace) -> Answer:
    encoder = _load_encoder(args)
    opened_a, opened_b = _open(args, args.a, encoder), _open(args, args.b, encoder)
    a, b = opened_a.features, opened_b.features
    results: dict[str, metrics.Estimate | float] = {}
    notes = []
    if set(a.keys) & set(b.keys):
        paired = pairs.pair(a, b)
        similarities = pairs.pair_similarities(paired)
        results["similarity of pairs"] = metrics.bootstrap(similarities)
        notes.append(f"{len(similarities)} pairs of equal names")
        if args.csv:
            records = pairs.pair_records(paired, "similarity", similarities)
            _write_csv(args.csv, records[0], [record.values() for record in records])
    elif args.csv:
        raise InputError("--csv lists pairs, but no name (up to its first dot) is in both folders")
    if min(len(a), len(b)) > 1:
        raw_a, raw_b = a.raw, b.raw
        results["similarity of centroids"] = distances.centroid_similarity(raw_a, raw_b)
        results["Frechet distance"] = distances.frechet_distance(raw_a, raw_b)
        results["kernel distance (KAD)"] = distances.kernel_distance(raw_a, raw_b)
        if remark := distances.sample_size_remark(len(a), len(b), a.matrix.shape[1]):
            notes.append(remark)
    text = "\n".join([f"{len(a)} and {len(b)} vectors", _format_results(results), *notes])
    data = {"sizes": [len(a), len(b)], **_plain(results), "notes": notes}
    return Answer(text, data, opened_a.failures + opened_b.failures)


def evaluate(args: argparse.Namespace) -> Answer:
    encoder = _load_encoder(args)
    opened_queries, opened_references = _open(args, args.queries, encoder), _open(args, args.references, encoder)
    queries, references = opened_queries.features, opened_references.features
    if args.relevance:
        relevance = pairs.load_relevance(args.relevance, queries, references)
        values = metrics.relevance_values(pairs.relevance_blocks(queries, references, relevance), args.at)
        rows = list(relevance)
        candidates = len(references)
        column = {"right": [len(right) for right in relevance.values()]}
        missing = f"right reference in {show(args.relevance)}"
    else:
        paired = pairs.pair(queries, references)
        values = metrics.rank_values(pairs.pair_ranks(paired), args.at)
        rows = paired.rows
        candidates = len(np.unique(paired.targets))
        column = {"reference": [references.paths[target] for target in paired.targets]}
        missing = "partner"
    if args.csv:
        table = {"query": [queries.paths[row] for row in rows], **column, **values}
        _write_csv(args.csv, table, zip(*table.values(), strict=True))
    left_out = {"queries": len(queries) - len(rows), "references": len(references) - candidates}
    text = f"{len(rows)} queries among {candidates} references"
    if any(left_out.values()):
        counts = [f"{count} {side}" for side, count in left_out.items() if count]
        text += f"; left out: {' and '.join(counts)} without a {missing}"
    results = metrics.summarize(values)
    data = {"queries": len(rows), "references": candidates, "left_out": left_out, **_plain(results)}
    failures = opened_queries.failures + opened_references.failures
    return Answer(f"{text}\n{_format_results(results)}", data, failures)


def classify(args: argparse.Namespace) -> Answer:
    prompts = {name: [name] for name in args.classes}
    if args.prompts:
        prompts = read_object(args.prompts, "the texts of at least two classes")
    if len(prompts) < 2:
        raise InputError("expected at least two classes to choose from: name them, or give --prompts FILE.json")
    encoder = _load_encoder(args)
    opened = _open(args, args.folder, encoder)
    classes = list(prompts)
    rows, similarities = similarity.search(opened.matrix, encoder.prototypes(prompts), top_k=1)
    predicted = rows[:, 0]
    lines, records = [], []
    for source, number, value in zip(opened.sources, predicted, similarities[:, 0].tolist(), strict=True):
        lines.append(_format_hit(value, classes[number], str(source)))
        records.append({"path": str(source), "label": classes[number], "similarity": value})
    data: dict = {"labels": records}
    if args.labels:
        truth = _labels(opened.features.paths, args.folder, args.labels)
        confusion, left_out = judge(predicted, truth, classes)
        lines += ["", describe_judgment(confusion, left_out, classes)]
        data |= metrics.classification_metrics(confusion)
        data["accuracy_interval"] = list(metrics.wilson_interval(data["accuracy"], int(confusion.sum())))
        data["confusion"] = confusion.tolist()
        data["classes"] = classes
    return Answer("\n".join(lines), data, opened.failures)


def draw_map(args: argparse.Namespace) -> Answer:
    from clamplib.app import maps  # needs packages of its own

    encoder = _load_encoder(args)
    opened = _open(args, args.folder, encoder)
    modalities = opened.modalities
    labels = modalities
    if args.labels != BY_MODALITY:
        labels = [label or "" for label in _labels(opened.features.paths, args.folder, args.labels)]
    points = maps.project(opened.matrix, args.method)
    options = {
        "labels": labels,
        "modalities": modalities,
        "title": f"{Path(args.folder).resolve().name}, {args.method.upper()}",
        "axes": maps.pca_axes(maps.pca(opened.matrix)[1]) if args.method == "pca" else ("", ""),
    }
    if args.output.suffix.lower() in (".html", ".htm"):
        titles = [_title_of(source) for source in opened.sources]
        maps.draw_html(points, args.output, titles=titles, details=list(map(str, opened.sources)), **options)
    else:
        maps.draw_png(points, args.output, **options)
    data = {"points": len(points), "output": str(args.output)}
    return Answer(f"{len(points)} points in {show(args.output)}", data, opened.failures)


def make_index(args: argparse.Namespace) -> Answer:
    location = args.milvus or args.index
    if not location:
        raise InputError("expected a folder for the index, or --milvus URI")
    encoder = _load_encoder(args)
    sources = find_sources(args.folder, encoder.suffixes)
    labels = _labels(aliases(sources), args.folder, args.labels) if args.labels else None
    with _open_index(location, encoder.space, encoder.dimension) as index:
        update = update_index(
            encoder,
            sources,
            index,
            args.folder,
            labels=labels,
            cache=_open_cache(args),
            workers=args.workers,
            backend=args.backend,
        )
        count, place = len(index), show(index.location)  # the location without a password
    text = f"{update.changed} added or changed, {update.removed} removed, {count} in {place}"
    return Answer(text, {"changed": update.changed, "removed": update.removed, "records": count}, update.failures)


def serve(args: argparse.Namespace) -> Answer:
    from clamplib.app import web  # needs packages of its own

    encoder = _load_encoder(args)
    sources = find_sources(args.folder, encoder.suffixes)
    collection = embed_sources(encoder, sources, args.folder, cache=_open_cache(args), workers=args.workers)
    check_found(collection, args.folder)
    report_left_out(failure["error"] for failure in collection.failures)
    _ = encoder.loaded  # so that the first query does not wait for it
    port = web.PORT if args.port is None else args.port
    web.serve_page(encoder, collection, args.folder, host=args.host, port=port, open_browser=args.open)
    return Answer("stopped", {"stopped": True})


def demo(args: argparse.Namespace) -> Answer:
    text, data = run_demo(_load_encoder(args), args.tunes or TUNES, args.workers)
    return Answer(text, data)


COMMANDS = {
    "embed": embed,
    "search": search_collection,
    "score": score,
    "eval": evaluate,
    "classify": classify,
    "map": draw_map,
    "index": make_index,
    "serve": serve,
    "demo": demo,
}


# ------------------------------------------------------------------------------------------- what they share


def _load_encoder(args: argparse.Namespace) -> CLaMP3Encoder:
    """Loads the encoder that the common options choose."""
    return CLaMP3Encoder.from_pretrained(
        args.variant,
        device=args.device,
        dtype=None if args.precision == "float32" else getattr(torch, args.precision),
        captioner=args.images,
        limits=limits_of(args),
        load_now=False,
    )


def _open_cache(args: argparse.Namespace) -> VectorCache | None:
    """Opens the cache of vectors, unless --no_cache."""
    return None if args.no_cache else VectorCache()


def _format_hit(value: float, *words: str) -> str:
    """Returns the line that shows a result of a search."""
    return "  ".join([f"{value:6.3f}", *map(show, words)])


def _title_of(source: os.PathLike) -> str:
    """Returns the title in a score, or else the file name."""
    return read_title(source) or Path(getattr(source, "alias", source)).name


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Writes a table with a header, whole or not at all."""
    if path.is_dir():
        raise InputError(f"{show(path)}: expected the name of a file to write the table to, this is a folder")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(rows)


def _open(args: argparse.Namespace, path: str, encoder: CLaMP3Encoder) -> Collection:
    return open_collection(encoder, path, cache=_open_cache(args), workers=args.workers)


def _is_index(path: str) -> bool:
    return Path(path, ExactIndex.TABLE).is_file()


def _open_index(location: str, space: dict, width: int | None = None) -> Index:
    """Opens the index at a location; with `width` it is created if there is none."""
    in_milvus = location.endswith(".db") or location.startswith(("http://", "https://"))
    return (MilvusIndex if in_milvus else ExactIndex)(location, space, width)


def _labels(paths: Sequence[Path], folder: str | Path, source: str) -> list[str | None]:
    """Returns the label of each file: its sub-folder, or what its name or a table says."""
    keys = [key(path, folder) for path in paths]
    if source == BY_FOLDER:
        return [name.rpartition("/")[0] or None for name in keys]
    return feature_labels(paths, keys, folder, source)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a sentence may be longer than the name of a file
        return False


def _format_results(results: dict[str, metrics.Estimate | float]) -> str:
    """Returns names, values and their intervals in columns."""
    width = max(map(len, results), default=0)
    lines = []
    for name, value in results.items():
        if isinstance(value, metrics.Estimate):
            text = f"{value.value:.4f}  (95 %: {value.low:.4f} to {value.high:.4f})"
        else:
            text = f"{value:.4f}"
        lines.append(f"{name:{width}}  {text}")
    return "\n".join(lines)


def _plain(results: dict[str, metrics.Estimate | float]) -> dict[str, object]:
    """Returns the results for JSON."""
    return {name: value._asdict() if isinstance(value, metrics.Estimate) else value for name, value in results.items()}
