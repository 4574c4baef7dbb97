"""The `clamp3` command: what the library does, in a line of a shell.

Wherever a command takes a folder, its files may be of any kind that the encoder takes; they are converted and embedded
on the way, each once (see `cache`). A folder of features (.npy, see extract_clamp3.py) is taken as it is.
"""

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clamplib import __version__
from clamplib.command import add_variant, positive
from clamplib.embedding.reading import BLIP_REPO
from clamplib.evaluation import classification, distances, metrics, pairs
from clamplib.evaluation.labels import FROM_NAMES, feature_labels
from clamplib.files import InputError, atomic_path, key, show
from clamplib.formats.score_files import title
from clamplib.retrieval import similarity

if TYPE_CHECKING:  # with torch, which --help does not need
    from clamplib.embedding.cache import VectorCache
    from clamplib.embedding.collections import Collection
    from clamplib.embedding.encoder import CLaMP3Encoder
    from clamplib.retrieval.index import Index

FOLDER = "a folder of scores, MIDI, recordings and texts, of features, or one file"
BY_FOLDER, BY_MODALITY = "folders", "modalities"
BACKEND = {"choices": ("ray", "dask"), "help": "embed on a cluster; default: here"}
DEMO_QUESTIONS = (
    "a lively jig in six eight",
    "ein langsames, trauriges Lied",
    "un hornpipe de marins",
    "una canción lenta y melancólica",
    "速いリール",
)


@dataclass(frozen=True)
class Answer:
    """What a command found: `text` for people, `data` for programs; `failures` (file, error) make the status 1."""

    text: str
    data: dict
    failures: list[dict[str, str]] = field(default_factory=list)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    try:
        answer = args.run(args)
    except (InputError, OSError, ImportError, ValueError) as error:
        print(json.dumps({"error": str(error)}) if args.json else f"error: {error}", file=_out(args))
        return 1
    except KeyboardInterrupt:
        print("stopped; what was embedded is kept", file=sys.stderr)
        return 130
    if args.json:
        print(json.dumps({**answer.data, "failures": answer.failures}, ensure_ascii=False))
    else:
        for failure in answer.failures:
            print(f"left out: {failure['error']}", file=sys.stderr)
        print(answer.text)
    return 1 if answer.failures else 0


def _out(args: argparse.Namespace) -> io.TextIOBase:
    return sys.stdout if args.json else sys.stderr


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="clamp3",
        description="Scores, MIDI, recordings and texts in one vector space: search, evaluate, classify, draw.",
        epilog='example: clamp3 search "a slow air in D minor" ~/music --variant mini',
    )
    parser.add_argument("--version", action="version", version=f"clamplib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def command(run: Callable, example: str) -> argparse.ArgumentParser:
        name = run.__name__.removesuffix("_")
        one = commands.add_parser(
            name,
            help=run.__doc__.replace("%", "%%"),  # which argparse formats, unlike a description
            description=run.__doc__,
            epilog=f"example: clamp3 {name} {example}",
        )
        one.set_defaults(run=run)
        common = one.add_argument_group("common options")
        add_variant(common)
        common.add_argument("--device", help="cuda, mps or cpu; default: the best there is")
        common.add_argument(
            "--workers",
            type=positive,
            help="processes that convert, here or on Ray (Dask uses all it has); default: one a core",
        )
        common.add_argument(
            "--images",
            nargs="?",
            const=BLIP_REPO,
            metavar="MODEL",
            help="take images too, by the captions that BLIP writes (fetched, or a folder)",
        )
        common.add_argument("--no_cache", action="store_true", help="make every vector anew, and keep none")
        common.add_argument("--json", action="store_true", help="answer in JSON")
        return one

    one = command(embed, "~/music features --variant mini")
    one.add_argument("folder", help=FOLDER)
    one.add_argument("output", help="folder for a .npy [1, D] a file; sub-folders are kept, what is up to date skipped")
    one.add_argument("--temporal", action="store_true", help="the last hidden states [1, T, H] in place of the vector")
    one.add_argument("--backend", **BACKEND)

    one = command(search, '"a slow air in D minor" ~/music --variant mini')
    one.add_argument("query", help="a sentence in any language, or a file")
    one.add_argument("library", nargs="?", help=f"{FOLDER}; or an index (see clamp3 index)")
    one.add_argument("--milvus", metavar="URI", help="search the Milvus index in a .db file or at http://…")
    one.add_argument("--top_k", type=positive, default=10, help="how many (default: %(default)s)")
    one.add_argument("--modality", choices=("text", "score", "midi", "audio"), help="only these")
    one.add_argument("--below", metavar="FOLDER", help="only files below this folder (of an index)")
    one.add_argument("--label", help="only files of this label (of an index)")

    one = command(score, "generated real --variant mini")
    one.add_argument("a", help=f"what is judged: {FOLDER}")
    one.add_argument("b", help="what it is compared with, likewise")
    one.add_argument("--csv", type=Path, help="file for the similarity of every pair")

    one = command(eval_, "texts scores --variant mini --csv ranks.csv")
    one.add_argument("queries", help=FOLDER)
    one.add_argument("references", help="likewise; what belongs together has one name up to the first dot")
    one.add_argument(
        "--relevance",
        type=Path,
        metavar="FILE.csv",
        help="table of what belongs together instead, any number of references a query: the columns query and "
        "reference (folder and name up to the first dot), and where wanted relevance, a grade (default: 1)",
    )
    one.add_argument(
        "--at", type=positive, nargs="+", default=[1, 10, 100], help="k of Hit@k and others (default: 1 10 100)"
    )
    one.add_argument("--csv", type=Path, help="file for what every query scores")

    one = command(classify, "~/music jig reel air --variant mini")
    one.add_argument("folder", help=FOLDER)
    one.add_argument("classes", nargs="*", help="the classes, in words")
    one.add_argument("--prompts", type=Path, help="JSON of the classes, each with a list of texts")
    one.add_argument("--labels", help=f"the truth, to be judged by it: {FROM_NAMES}, {BY_FOLDER}, or a table of labels")

    one = command(map_, "~/music map.html --labels folders --variant mini")
    one.add_argument("folder", help=FOLDER)
    one.add_argument("output", type=Path, nargs="?", default=Path("map.html"), help=".html, .png, .pdf or .svg")
    one.add_argument("--method", choices=("pca", "umap", "tsne"), default="pca", help="default: %(default)s")
    one.add_argument(
        "--labels",
        default=BY_FOLDER,
        help=f"colors: {BY_FOLDER} (default), {BY_MODALITY}, {FROM_NAMES}, or a table of labels",
    )

    one = command(index, "~/music library --variant mini")
    one.add_argument("folder", help=FOLDER)
    one.add_argument("index", nargs="?", help="folder of the index, which is made or brought up to date")
    one.add_argument("--milvus", metavar="URI", help="an index in Milvus instead: a .db file, or http://…")
    one.add_argument("--labels", help=f"labels to filter by: {FROM_NAMES}, {BY_FOLDER}, or a table of labels")
    one.add_argument("--backend", **BACKEND)

    one = command(serve, "~/music --variant mini")
    one.add_argument("folder", help=FOLDER)
    one.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine alone")
    one.add_argument("--port", type=int, help="default: the page's own, which is shown; 0: a free one")
    one.add_argument("--open", action="store_true", help="show it in the browser")

    one = command(demo, "")
    one.set_defaults(variant="mini")
    return parser


# ------------------------------------------------------------------------------------------- commands


def embed(args: argparse.Namespace) -> Answer:
    """Write a vector (.npy) for every file of a folder."""
    from clamplib.embedding.collections import embed_folder

    report = embed_folder(
        _encoder(args),
        args.folder,
        args.output,
        temporal=args.temporal,
        cache=_cache(args),
        workers=args.workers,
        backend=args.backend,
    )
    return Answer(report.summary(), {"done": report.done, "skipped": report.skipped}, report.failures)


def search(args: argparse.Namespace) -> Answer:
    """Find what is closest to a sentence or a file."""
    encoder = _encoder(args)
    query = _open(args, args.query, encoder).features.matrix if _is_file(args.query) else encoder.encode([args.query])
    if len(query) != 1:
        raise InputError(f"{show(args.query)}: expected one query, got {len(query)}")
    if args.milvus or args.library and _is_index(args.library):
        hits, failures = _search_index(args, encoder, query), []
    elif args.library:
        hits, failures = _search_folder(args, encoder, query)
    else:
        raise InputError("expected a folder or an index to search, or --milvus URI")
    text = "\n".join(_line(similarity, path) for path, _, similarity in hits)
    return Answer(text, {"query": args.query, "hits": _records(("path", "modality", "similarity"), hits)}, failures)


def _search_index(args: argparse.Namespace, encoder: "CLaMP3Encoder", query: np.ndarray) -> list[tuple]:
    """(path, modality, similarity) of each hit."""
    below = os.path.abspath(args.below) if args.below else None
    with _index(args.milvus or args.library, encoder.space) as store:
        found = store.search(query, args.top_k, folder=below, label=args.label, modality=args.modality)[0]
    return [(hit.path, hit.modality, hit.similarity) for hit in found]


def _search_folder(args: argparse.Namespace, encoder: "CLaMP3Encoder", query: np.ndarray) -> tuple[list, list]:
    """(path, modality, similarity) of each hit, and the failures."""
    if args.below or args.label:
        raise InputError("--below and --label need an index (see clamp3 index); name a folder within instead")
    opened = _open(args, args.library, encoder)
    kept = [row for row, modality in enumerate(opened.modalities) if args.modality in (None, modality)]
    if not kept:
        raise InputError(f"{show(args.library)}: expected {args.modality} files, found none")
    [rows], [similarities] = similarity.search(query, opened.features.matrix[kept], args.top_k)
    found = zip((kept[row] for row in rows), similarities.tolist(), strict=True)
    return [(str(opened.sources[n]), opened.modalities[n], value) for n, value in found], opened.failures


def score(args: argparse.Namespace) -> Answer:
    """Say how close two sets are: pairs (CLaMP score), centroids, Frechet and kernel distance."""
    encoder = _encoder(args)
    opened = [_open(args, path, encoder) for path in (args.a, args.b)]
    a, b = (each.features for each in opened)
    rows: dict[str, metrics.Estimate | float] = {}
    notes = []
    if set(a.keys) & set(b.keys):
        paired = pairs.pair(a, b)
        similarities = pairs.pair_similarities(paired)
        rows["similarity of pairs"] = metrics.bootstrap(similarities)
        notes.append(f"{len(similarities)} pairs of equal names")
        if args.csv:
            records = pairs.pair_records(paired, "similarity", similarities)
            write_csv(args.csv, records[0], [record.values() for record in records])
    elif args.csv:
        raise InputError("--csv lists pairs, but no name (up to its first dot) is in both folders")
    raw_a, raw_b = a.raw, b.raw
    if min(len(a), len(b)) > 1:
        rows["similarity of centroids"] = distances.centroid_similarity(raw_a, raw_b)
        rows["Frechet distance"] = distances.frechet_distance(raw_a, raw_b)
        rows["kernel distance (KAD)"] = distances.kernel_distance(raw_a, raw_b)
        remark = distances.sample_size_remark(len(a), len(b), a.matrix.shape[1])
        notes += [remark] if remark else []
    text = f"{len(a)} and {len(b)} vectors\n" + _table(rows) + "".join(f"\n{note}" for note in notes)
    return Answer(text, {"sizes": [len(a), len(b)], **_numbers(rows), "notes": notes}, _failures(opened))


def eval_(args: argparse.Namespace) -> Answer:
    """Measure retrieval: MRR, Hit@k, nDCG@k, median rank, mAP, with 95 % confidence intervals."""
    encoder = _encoder(args)
    opened = [_open(args, path, encoder) for path in (args.queries, args.references)]
    queries, references = (each.features for each in opened)
    if args.relevance:
        relevance = pairs.load_relevance(args.relevance, queries, references)
        rows, among, lack = list(relevance), len(references), f"right reference in {show(args.relevance)}"
        partners = {"right": [len(right) for right in relevance.values()]}
        values = metrics.relevance_values(pairs.relevance_blocks(queries, references, relevance), args.at)
    else:
        paired = pairs.pair(queries, references)
        rows, among, lack = paired.rows, len(np.unique(paired.targets)), "partner"
        partners = {"reference": [references.paths[target] for target in paired.targets]}
        values = metrics.rank_values(pairs.pair_ranks(paired), args.at)
    if args.csv:
        table = {"query": [queries.paths[row] for row in rows], **partners, **values}
        write_csv(args.csv, table, zip(*table.values(), strict=True))
    left = {"queries": len(queries) - len(rows), "references": len(references) - among}
    text = f"{len(rows)} queries among {among} references"
    if any(left.values()):
        text += f"; left out: {' and '.join(f'{n} {side}' for side, n in left.items() if n)} without a {lack}"
    summary = metrics.summarize(values)
    counts = {"queries": len(rows), "references": among, "left_out": left}
    return Answer(f"{text}\n{_table(summary)}", {**counts, **_numbers(summary)}, _failures(opened))


def classify(args: argparse.Namespace) -> Answer:
    """Give every file the class whose words are closest, with no training; judge it where the truth is known."""
    prompts = json.loads(args.prompts.read_text("utf-8")) if args.prompts else {name: [name] for name in args.classes}
    if len(prompts) < 2:
        raise InputError("expected at least two classes to choose from: name them, or give --prompts FILE.json")
    encoder = _encoder(args)
    opened = _open(args, args.folder, encoder)
    classes = list(prompts)
    rows, similarities = similarity.search(opened.features.matrix, encoder.prototypes(prompts), top_k=1)
    given, similarities = [classes[row] for row in rows[:, 0]], similarities[:, 0].tolist()
    found = list(zip(map(str, opened.sources), given, similarities, strict=True))
    lines = [_line(similarity, label, path) for path, label, similarity in found]
    data: dict = {"labels": _records(("path", "label", "similarity"), found)}
    if args.labels:
        truth = _labels(opened.features.paths, args.folder, args.labels)
        known = [row for row, label in enumerate(truth) if label in prompts]
        if not known:
            raise InputError(f"expected true labels among {', '.join(classes)}; got others, such as {truth[0]!r}")
        counts = metrics.confusion_matrix([classes.index(truth[row]) for row in known], rows[known, 0], len(classes))
        judged = metrics.classification_metrics(counts)
        low, high = metrics.wilson_interval(judged["accuracy"], len(known))
        lines += ["", classification.describe_confusion(counts, classes)]
        lines += [f"accuracy {judged['accuracy']:.3f} ({low:.3f} to {high:.3f}), macro F1 {judged['f1_macro']:.3f}"]
        data |= {**judged, "accuracy_interval": [low, high], "confusion": counts.tolist(), "classes": classes}
    return Answer("\n".join(lines), data, opened.failures)


def map_(args: argparse.Namespace) -> Answer:
    """Draw the embedding space of a folder, as a page (.html) or as a picture."""
    from clamplib.app import maps

    encoder = _encoder(args)
    opened = _open(args, args.folder, encoder)
    matrix, modalities = opened.features.matrix, opened.modalities
    labels = modalities if args.labels == BY_MODALITY else _labels(opened.features.paths, args.folder, args.labels)
    labels = [label or "" for label in labels]
    points = maps.project(matrix, args.method)
    name = f"{Path(args.folder).resolve().name}, {args.method.upper()}"
    axes = maps.pca_axes(maps.pca(matrix)[1]) if args.method == "pca" else ("", "")
    looks = {"labels": labels, "modalities": modalities, "title": name, "axes": axes}
    if args.output.suffix.lower() in (".html", ".htm"):
        titles = [_title(source) for source in opened.sources]
        maps.draw_html(points, args.output, titles=titles, details=list(map(str, opened.sources)), **looks)
    else:
        maps.draw_png(points, args.output, **looks)
    data = {"points": len(points), "output": str(args.output)}
    return Answer(f"{len(points)} points in {show(args.output)}", data, opened.failures)


def index(args: argparse.Namespace) -> Answer:
    """Make an index of a folder for `clamp3 search`, or bring it up to date."""
    from clamplib.embedding.collections import aliases, find_sources, update_index

    location = args.milvus or args.index
    if not location:
        raise InputError("expected a folder for the index, or --milvus URI")
    encoder = _encoder(args)
    sources = find_sources(args.folder, encoder.suffixes)
    labels = _labels(aliases(sources), args.folder, args.labels) if args.labels else None
    options = {"labels": labels, "cache": _cache(args), "workers": args.workers, "backend": args.backend}
    with _index(location, encoder.space, encoder.dimension) as store:
        update = update_index(encoder, sources, store, args.folder, **options)
        count, place = len(store), show(store.location)  # as it may be shown: without a password
    text = f"{update.changed} added or changed, {update.removed} removed, {count} in {place}"
    return Answer(text, {"changed": update.changed, "removed": update.removed, "records": count}, update.failures)


def serve(args: argparse.Namespace) -> Answer:
    """Serve a search page for a folder, to this machine alone unless told otherwise."""
    from clamplib.app import web
    from clamplib.embedding.collections import check_found, embed_library, find_sources

    encoder = _encoder(args)
    sources = find_sources(args.folder, encoder.suffixes)
    library = check_found(embed_library(encoder, sources, cache=_cache(args), workers=args.workers), args.folder)
    for failure in library.failures:
        print(f"left out: {failure['error']}", file=sys.stderr)
    port = web.PORT if args.port is None else args.port
    web.serve(encoder, library, args.folder, host=args.host, port=port, open_browser=args.open)
    return Answer("stopped", {"stopped": True})


def demo(args: argparse.Namespace) -> Answer:
    """Ask sentences of fiddle tunes that come with music21: a third of Ryan's Mammoth Collection."""
    from music21.common import getCorpusFilePath

    from clamplib.embedding.collections import embed_library, find_sources

    encoder = _encoder(args)
    sources = find_sources(Path(getCorpusFilePath(), "ryansMammoth"))[::3]
    library = embed_library(encoder, sources, cache=_cache(args), workers=args.workers)
    answers = {}
    for question in DEMO_QUESTIONS:
        rows, similarities = similarity.search(encoder.encode([question]), library.matrix, 5)
        found = zip(rows[0], similarities[0].tolist(), strict=True)
        answers[question] = [{"title": _title(library.sources[row]), "similarity": value} for row, value in found]
    text = "\n\n".join(
        "\n".join([question, *(_line(hit["similarity"], hit["title"]) for hit in hits)])
        for question, hits in answers.items()
    )
    text += f"\n\nof {len(library)} tunes"
    return Answer(text, {"answers": answers})


# ------------------------------------------------------------------------------------------- what they share


def _encoder(args: argparse.Namespace) -> "CLaMP3Encoder":
    from clamplib.embedding.encoder import CLaMP3Encoder

    return CLaMP3Encoder.from_pretrained(args.variant, device=args.device, captioner=args.images)


def _cache(args: argparse.Namespace) -> "VectorCache | None":
    from clamplib.embedding.cache import VectorCache

    return None if args.no_cache else VectorCache()


def _is_index(path: str) -> bool:
    from clamplib.retrieval.index import ExactIndex

    return Path(path, ExactIndex.TABLE).is_file()


def _index(location: str, space: dict, width: int | None = None) -> "Index":
    """The index there; one is made where `width` is given."""
    from clamplib.retrieval.index import ExactIndex
    from clamplib.retrieval.milvus import MilvusIndex

    milvus = location.endswith(".db") or location.startswith(("http://", "https://"))
    return (MilvusIndex if milvus else ExactIndex)(location, space, width)


def _open(args: argparse.Namespace, path: str, encoder: "CLaMP3Encoder") -> "Collection":
    from clamplib.embedding.collections import open_collection

    return open_collection(encoder, path, cache=_cache(args), workers=args.workers)


def _failures(opened: Iterable["Collection"]) -> list[dict[str, str]]:
    return [failure for each in opened for failure in each.failures]


def _labels(paths: list[Path], folder: str | Path, source: str) -> list[str | None]:
    """The label of each: the sub-folder it lies in, or what its name or a table says."""
    keys = [key(path, folder) for path in paths]
    if source == BY_FOLDER:
        return [name.rpartition("/")[0] or None for name in keys]
    return feature_labels(paths, keys, folder, source)


def _title(source: os.PathLike) -> str:
    return title(source) or Path(getattr(source, "alias", source)).name


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # a sentence longer than names may be
        return False


def _line(similarity: float, *words: str) -> str:
    return "  ".join([f"{similarity:6.3f}", *words])


def _records(names: Sequence[str], rows: Iterable[Sequence]) -> list[dict]:
    return [dict(zip(names, row, strict=True)) for row in rows]


def _table(rows: dict) -> str:
    """Names, values and their intervals in columns."""
    width = max(map(len, rows), default=0)
    return "\n".join(f"{name:{width}}  {_value(value)}" for name, value in rows.items())


def _value(value: "metrics.Estimate | float") -> str:
    if isinstance(value, tuple):
        return f"{value.value:.4f}  (95 %: {value.low:.4f} to {value.high:.4f})"
    return f"{value:.4f}"


def _numbers(rows: dict) -> dict:
    return {name: value._asdict() if isinstance(value, tuple) else value for name, value in rows.items()}


def write_csv(path: Path, header: Iterable[str], rows: Iterable[Sequence]) -> None:
    """A table with a header, whole or not at all."""
    if path.is_dir():
        raise InputError(f"{show(path)}: expected the name of a file to write the table to, this is a folder")
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
