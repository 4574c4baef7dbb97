"""The real files that are mutated: golden ones, some of music21's, and some made here. All are small."""

import gzip
import io
import json
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
WIDTH = 448  # of the features of recordings that mini takes
MOST_BYTES = 20_000  # of a file; reading a larger one takes as long as many small ones
MOST_FILES = 16  # of a folder
VARIANT, PIECES, INDEX = "variant", "pieces", "index"  # folders in which one file is mutated
VECTORS = f"vectors-{'0' * 32}.f32"  # of the index

CODECS = {  # of recordings, by suffix
    ".wav": "pcm_s16le",
    ".aiff": "pcm_s24be",
    ".flac": "flac",
    ".mp3": "libmp3lame",
    ".ogg": "libopus",
    ".m4a": "aac",
    ".aac": "aac",
    ".webm": "libopus",
}
MEI = b"""<?xml version="1.0" encoding="UTF-8"?>
<mei xmlns="http://www.music-encoding.org/ns/mei" meiversion="3.0.0"><meiHead><fileDesc><titleStmt><title>Air</title>
</titleStmt></fileDesc></meiHead><music><body><mdiv><score><scoreDef meter.count="3" meter.unit="4" key.sig="1s">
<staffGrp symbol="brace"><staffDef n="1" lines="5" clef.shape="G" clef.line="2"/>
<staffDef n="2" lines="5" clef.shape="F" clef.line="4" trans.semi="-2" trans.diat="-1"/></staffGrp></scoreDef>
<section><measure n="1" right="rptstart"><staff n="1"><layer n="1"><tuplet num="3" numbase="2"><note xml:id="a"
pname="g" oct="4" dur="8"/><note pname="a" oct="4" dur="8" accid="s"/><note pname="b" oct="4" dur="8" tie="i"/></tuplet>
<beam><note pname="b" oct="4" dur="8" tie="t"/><note pname="c" oct="5" dur="8" grace="acc"/></beam>
<chord xml:id="b" dur="4" dots="1"><note pname="e" oct="4"/><note pname="g" oct="4" artic="stacc"/></chord></layer>
<layer n="2"><rest dur="2" dots="1"/></layer></staff><staff n="2"><layer n="1"><mRest/></layer></staff>
<slur startid="#a" endid="#b"/><dynam tstamp="1">p</dynam></measure>
<measure n="2" right="rptend"><staff n="1"><layer n="1"><note pname="g" oct="4" dur="2" dots="1"><verse n="1"><syl
con="d">la</syl></verse></note></layer></staff><staff n="2"><layer n="1"><space dur="2"/><clef shape="G" line="2"/>
<note pname="d" oct="3" dur="4"/></layer></staff></measure></section></score></mdiv></body></music></mei>
"""
ROMANTEXT = [
    b"Composer: X\nTitle: Air\nTime Signature: 3/4\n\nm1 G: I b2 V6 b3 I\nm2 ||: ii6/5 b2.5 V7 :||\nm3-4 = m1-2\n",
    b"Time Signature: 4/4\nKey Signature: -1\nNote: x\nm0 b4 d: V\nm1 i b3 viio6/5/V\nm2var1 iv\nm2 It6 b3 V || F: I\n",
]


def write_seeds(folder: Path) -> None:
    """Writes the files of each kind to a folder of its name, and the folders in which one file is mutated to with/."""
    import music21

    package = Path(music21.__file__).parent
    kern = package / "corpus/palestrina"
    for kind, seeds in {
        "text": _read(GOLDEN / "model/in/txt", "*.txt"),
        "abc": [*_read(GOLDEN / "abc/std", "*.abc"), *_read(package / "corpus/nottingham-dataset", "*.abc")],
        "interleaved": _read(GOLDEN / "abc/interleaved", "*.abc"),
        "xml": [
            *map(gzip.decompress, _read(GOLDEN / "abc/back_xml", "*.gz", 1500)),
            *_read(GOLDEN / "abc/xml", "*xml"),
        ],
        "mxl": _read(GOLDEN / "abc/xml", "*.mxl", 8000),
        "kern": [*_read(kern, "Gloria_69*.krn", 2000), *_kern_tests()],
        "mei": [MEI, MEI, MEI, MEI, *_read(package / "mei/test", "*.mei", 16_000)],
        "romantext": [*ROMANTEXT * 4, *_read(package / "corpus/bach/choraleAnalyses", "*.rntxt", 600)],
        "capella": _read(package / "capella", "*.capx"),
        "noteworthy": _read(package / "noteworthy", "*.nwc"),
        "noteworthy text": _read(package / "noteworthy", "*.nwctxt", 5000),
        "musedata": _read(package / "musedata/testPrimitive/test01", "*.md"),
        "midi": _read(GOLDEN / "midi/in", "*.mid"),
        "mtf": _read(GOLDEN / "midi/mtf_full", "*.mtf"),
        "features": _arrays(),
        "comma table": [b'path,label,more\na/1.npy,jig,x\n"b,2.npy",reel,\n', b"key,label\na,1\nb,2\n"],
        "json table": [b'{"path": "a.npy", "label": "jig"}\n\n{"path": "b.npy", "label": 2}\n'],
    }.items():
        _write(folder / kind, seeds)
    _write_recordings(folder)
    _write_variant(folder, folder / "with" / VARIANT)
    _write_pieces(folder, folder / "with" / PIECES)
    _write_index(folder, folder / "with" / INDEX)


def _read(folder: Path, pattern: str, most_bytes: int = MOST_BYTES) -> list[bytes]:
    paths = sorted(path for path in folder.glob(pattern) if path.stat().st_size <= most_bytes)
    return [path.read_bytes() for path in paths[:MOST_FILES]]


def _write(folder: Path, seeds: Iterable[bytes]) -> None:
    folder.mkdir(parents=True)
    for number, seed in enumerate(seeds):
        (folder / f"{number:03d}").write_bytes(seed)


def _kern_tests() -> list[bytes]:
    from music21.humdrum import testFiles as tests

    scores = (tests.splitLots, tests.ojibway, tests.dottedTuplet, tests.splitSpines, tests.harmScaleDegrees)
    return [score.encode() for score in scores]


def _arrays() -> list[bytes]:
    arrays = []
    values = np.random.default_rng(0).standard_normal((1, 3, WIDTH))
    for array in (values.astype(np.float32), values[0], values.astype(">f2"), np.asfortranarray(values[0])):
        file = io.BytesIO()
        np.save(file, array)
        arrays.append(file.getvalue())
    return arrays


def _write_recordings(folder: Path) -> None:
    """Writes half a second of sound in several formats. Each is a kind of its suffix."""
    times = np.arange(12_000) / 24_000
    sound = np.stack([np.sin(2 * np.pi * 440 * times), np.sin(2 * np.pi * 660 * times)]).astype(np.float32) / 2
    for suffix, codec in CODECS.items():
        _write(folder / suffix, [_encoded(sound[:1], suffix, codec), _encoded(sound, suffix, codec)])


def _encoded(sound: np.ndarray, suffix: str, codec: str) -> bytes:
    """Encodes sound [channels, n] of 24 kHz, to the same bytes each time."""
    import av

    layout = "mono" if len(sound) == 1 else "stereo"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sound" + suffix)
        with av.open(str(path), "w", container_options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(codec, rate=24_000, layout=layout, options={"strict": "experimental"})
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            frame.rate = 24_000
            for part in [*av.AudioResampler(stream.format.name, layout, 24_000).resample(frame), None]:
                container.mux(stream.encode(part))
        return path.read_bytes()


def _write_variant(seeds: Path, folder: Path) -> None:
    """Writes the folder of tiny weights as a variant, a checkpoint and a probe; the seeds are its files."""
    import torch
    from transformers import AutoTokenizer

    from clamplib.models.encoders import CLaMP3Model
    from clamplib.models.geometry import Geometry
    from clamplib.models.loading import save_variant

    torch.manual_seed(0)
    geometry = Geometry(
        text_model_name=str(GOLDEN / "tiny/text_model"),
        patch_size=4,
        patch_length=16,
        patch_num_layers=1,
        m3_hidden_size=64,
        clamp3_hidden_size=64,
        audio_hidden_size=64,
        audio_num_layers=1,
        max_audio_length=16,
        max_text_length=16,
    )
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "tiny/text_model")
    save_variant(folder, CLaMP3Model.from_geometry(geometry), tokenizer, geometry)
    for kind in ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        _write(seeds / kind, [(folder / kind).read_bytes()])
    _write(seeds / "probe.pth", [(GOLDEN / "classification/weights-train.pth").read_bytes()])
    space = {
        "variant": "x",
        "weights_sha256": "0" * 64,
        "kind": "clamp3 global",
        "abc": "as found",
        "geometry": {"a": 1},
    }
    _write(seeds / "space.json", [json.dumps(space, indent=1).encode()])


def _write_pieces(seeds: Path, folder: Path) -> None:
    """Writes the files that lines of training data name; the seeds are such lines, and a shard."""
    folder.mkdir(parents=True)
    shutil.copy(GOLDEN / "abc/interleaved/handmade__chords.abc", folder / "a.abc")
    shutil.copy(GOLDEN / "midi/mtf_m3/hm_type0.mtf", folder / "b.mtf")
    np.save(folder / "c.npy", np.zeros((1, 3, WIDTH), np.float32))
    with tarfile.open(folder / "shard.tar", "w") as shard:
        for name in ("a.abc", "b.mtf", "c.npy"):
            shard.add(folder / name, f"./in/{name}", filter=_without_owner)
    lines = [
        {"id": 1, "filepaths": ["a.abc", "b.mtf"], "title": "Air", "language": "en", "genres": ["air", None, 3]},
        {"filepaths": ["c.npy", "shard.tar/in/a.abc"], "analysis": "slow\nsad", "translations": {"title": "Lied"}},
        {"id": "x", "filepaths": ["shard.tar/in/c.npy"], "title": "x", "translations": [{"language": "fr"}, None]},
    ]
    _write(seeds / "pieces.jsonl", ["\n".join(map(json.dumps, lines)).encode()])
    _write(seeds / "shard.tar", [(folder / "shard.tar").read_bytes()])


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def _write_index(seeds: Path, folder: Path) -> None:
    """Writes an index of three vectors and a cache; the seeds are their files."""
    from clamplib.embedding.cache import VectorCache
    from clamplib.retrieval.index import ExactIndex, Record

    unit = np.eye(3, 4, dtype=np.float32)
    records = [Record(f"/music/{name}.abc", name, label, "score") for name, label in ("aj", "bj", "cr")]
    with ExactIndex(folder, {"kind": "clamp3 global"}, 4) as index:
        index.upsert(records, unit)
    VectorCache(folder / "vectors.sqlite").put(dict(zip("abc", unit, strict=True)))
    [vectors] = folder.glob("*.f32")
    vectors = vectors.rename(folder / VECTORS)  # the seeds are the same each time
    with closing(sqlite3.connect(folder / "records.sqlite")) as table, table:
        table.execute("UPDATE state SET matrix = ?", (vectors.name,))
    _write(seeds / "records.sqlite", [(folder / "records.sqlite").read_bytes()])
    _write(seeds / "vectors.sqlite", [(folder / "vectors.sqlite").read_bytes()])
    _write(seeds / vectors.name, [vectors.read_bytes()])
