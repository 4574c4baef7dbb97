"""The jobs that are disturbed by faults.py: real commands on small data, which is made here."""

import gzip
import itertools
import json
import shutil
import wave
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parents[1] / "golden"
COPIES = 20  # of the small files, so that a job takes seconds
CORPUS = Path(find_spec("music21").origin).with_name("corpus")


@dataclass(frozen=True)
class Job:
    """A command that writes to the folder out/ of a run.

    Attributes:
        name: of the job.
        words: the command line, without Python; "{inputs}" and "{run}" stand for the folders.
        workers: whether it starts processes.
        training: whether it is one of the loop, which ends if a process of its loader dies.
        settings: of its config.py in the folder of a run; None: it has none.
        cached: whether it keeps vectors in the cache.
    """

    name: str
    words: str
    workers: bool = True
    training: bool = False
    settings: str | None = None
    cached: bool = False


TRAINING = f"""
PATCH_NUM_LAYERS = TOKEN_NUM_LAYERS = AUDIO_NUM_LAYERS = 1
M3_HIDDEN_SIZE = PATCH_LENGTH = 64
CLAMP3_HIDDEN_SIZE = 32
AUDIO_HIDDEN_SIZE = 128
TEXT_MODEL_NAME = {str(GOLDEN / "tiny/text_model")!r}
DROPOUT = 0.2
EVAL_SPLIT = 0.25
SAVE_EVERY = 2
M3_NUM_EPOCH = CLAMP3_NUM_EPOCH = 4
M3_WARMUP_STEPS = CLAMP3_WARMUP_STEPS = 3
M3_LEARNING_RATE = CLAMP3_LEARNING_RATE = 1e-3
M3_BATCH_SIZE = CLAMP3_BATCH_SIZE = 2
CLAMP3_LOAD_M3 = False
M3_TRAIN_FOLDERS = ["{{inputs}}/corpus"]
CLAMP3_TRAIN_JSONL = "{{inputs}}/pieces.jsonl"
M3_WEIGHTS_PATH, M3_LOGS_PATH = "out/m3.pth", "out/m3.txt"
CLAMP3_WEIGHTS_PATH, CLAMP3_LOGS_PATH = "out/clamp3.pth", "out/clamp3.txt"
NUM_WORKERS = 2
"""
ALONE = TRAINING + "NUM_WORKERS = 0\n"
SIZES = json.loads((GOLDEN / "tiny/tiny_config.json").read_text())
EXPORT = f"""
TEXT_MODEL_NAME = {str(GOLDEN / "tiny/text_model")!r}
CLAMP3_WEIGHTS_PATH, M3_WEIGHTS_PATH = "{{inputs}}/clamp3_tiny.pth", "{{inputs}}/m3_tiny.pth"
""" + "\n".join(f"{name} = {value!r}" for name, value in SIZES.items())
EXTRACT = "{inputs}/sequences {run}/out --variant mini --num_workers 2"

JOBS = [
    Job("batch_xml2abc", "preprocessing/abc/batch_xml2abc.py {inputs}/scores {run}/out"),
    Job("batch_interleaved_abc", "preprocessing/abc/batch_interleaved_abc.py {inputs}/tunes {run}/out"),
    Job("batch_abc2xml", "preprocessing/abc/batch_abc2xml.py {inputs}/abc {run}/out"),
    Job("batch_midi2mtf", "preprocessing/midi/batch_midi2mtf.py {inputs}/midi {run}/out"),
    Job("batch_mtf2midi", "preprocessing/midi/batch_mtf2midi.py {inputs}/mtf {run}/out"),
    Job("extract_spectral", "preprocessing/audio/extract_spectral.py {inputs}/recordings {run}/out"),
    Job("extract_clamp3", f"code/extract_clamp3.py {EXTRACT} --get_global"),
    Job("extract_m3", f"code/extract_m3.py {EXTRACT}"),
    Job("clamp3 embed", "-m clamplib embed {inputs}/music {run}/out --variant mini", cached=True),
    Job("clamp3 index", "-m clamplib index {inputs}/music {run}/out --variant mini", cached=True),
    Job("pack_shards", "code/pack_shards.py {inputs}/many.jsonl {run}/out --shard_size 200KB", workers=False),
    Job("train_m3", "code/train_m3.py --config {run}/config.py", training=True, settings=TRAINING),
    Job(
        "train_clamp3_symbolic",
        "code/train_clamp3_symbolic.py --config {run}/config.py",
        workers=False,
        training=True,
        settings=ALONE,
    ),
    Job("train_clamp3_audio", "code/train_clamp3_audio.py --config {run}/config.py", training=True, settings=TRAINING),
    Job(
        "train_cls",
        "classification/train_cls.py --train_folder {inputs}/labeled --output_dir {run}/out --num_epochs 30",
        workers=False,
    ),
    Job("export_clamp3", "code/export_clamp3.py {run}/out --config {run}/config.py", workers=False, settings=EXPORT),
]


def make_inputs(folder: Path, copies: int = COPIES) -> None:
    """Writes what the jobs read: real scores and MIDI, and texts, sounds and features that are made here."""
    rng = np.random.default_rng(0)
    scores = sorted(CORPUS.glob("bach/*.mxl"))
    midi = [path for path in sorted(GOLDEN.glob("midi/in/*.mid")) if path.name.startswith(("hm_t", "m21_"))]
    midi = [path for path in midi if "type2" not in path.name]
    _copy(scores[:60], folder / "scores")
    abc = [path for path in sorted(GOLDEN.glob("abc/std/*.abc")) if "unequal" not in path.name]
    _copy(abc, folder / "abc")
    _copy(abc, folder / "tunes", copies=copies)
    _copy(midi, folder / "midi", copies=2 * copies)
    _copy(sorted(GOLDEN.glob("midi/mtf_m3/*.mtf")), folder / "mtf", copies=copies)
    _copy(sorted(GOLDEN.glob("abc/interleaved/*.abc")), folder / "sequences")
    _copy(sorted(GOLDEN.glob("midi/mtf_m3/m21*.mtf")), folder / "sequences")
    _copy(scores[60:80] + midi, folder / "music")
    for number in range(40):
        (folder / f"music/text{number}.txt").write_text(f"a slow air, number {number}, in D minor", encoding="utf-8")
    (folder / "recordings").mkdir()
    for number in range(6):
        _write_sound(folder / f"recordings/{number}.wav", rng, seconds=8)
    (folder / "labeled").mkdir()
    for number in range(400):
        np.save(folder / f"labeled/{('jig', 'reel', 'air')[number % 3]}_{number}.npy", rng.normal(size=(1, 64)))
    for name in ("clamp3_tiny.pth", "m3_tiny.pth"):
        (folder / name).write_bytes(gzip.decompress((GOLDEN / f"tiny/{name}.gz").read_bytes()))
    _write_pieces(folder / "pieces.jsonl", folder / "corpus", 40, rng)
    _write_pieces(folder / "many.jsonl", folder / "many", 200 * copies, rng)


def _copy(paths: list[Path], folder: Path, copies: int = 1) -> None:
    folder.mkdir(exist_ok=True)
    for path, number in itertools.product(paths, range(copies)):
        shutil.copy(path, folder / (f"{number}-{path.name}" if copies > 1 else path.name))


def _write_sound(path: Path, rng: np.random.Generator, seconds: int, rate: int = 22050) -> None:
    times = np.arange(seconds * rate) / rate
    sound = 8000 * np.sin(2 * np.pi * rng.uniform(200, 800) * times) + rng.normal(0, 100, len(times))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(sound.astype("<i2").tobytes())


def _write_pieces(jsonl: Path, folder: Path, count: int, rng: np.random.Generator) -> None:
    folder.mkdir()
    lines = []
    for number in range(count):
        stem = folder / f"p{number}"
        bars = ["".join(rng.choice(list("CDEFGAB"), 4)) + "|" for _ in range(rng.integers(3, 30))]
        notes = [f"note_on {rng.integers(100)} 0 {rng.integers(40, 80)} 64" for _ in range(rng.integers(3, 30))]
        stem.with_suffix(".abc").write_text("M:4/4\nK:C\n" + "\n".join(bars) + "\n")
        stem.with_suffix(".mtf").write_text("ticks_per_beat 480\n" + "\n".join(notes))
        np.save(stem.with_suffix(".npy"), rng.normal(size=(1, number % 7 + 2, 128)).astype(np.float32))
        files = [f"{folder.name}/p{number}{suffix}" for suffix in (".abc", ".mtf", ".npy")]
        lines.append(json.dumps({"id": number, "filepaths": files, "title": f"piece {number}", "analysis": "a tune"}))
    jsonl.write_text("\n".join(lines) + "\n")
