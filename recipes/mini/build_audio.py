"""Makes the audio that `mini` is trained on and judged by, in the folder that recipes.mini.build made.

    python -m recipes.mini.build_audio out/mini

Every piece is rendered once (see render). Training pieces are performed (see rewrite), half of them with a sound font
and half with sounds that no instrument has. Held-out clips are played as written, with another sound font and other
instruments. The folder then holds:

    played/<path>.npy     the spectrogram of each rendered piece
    audio/<path>.npy      the features computed from it
    moved/                the canonical forms of training pieces in other keys
    train_audio.jsonl     training pieces in several keys, with the files and the texts of each key

In each key, a training piece has features as it was played and features in another tempo and tone.
"""

import argparse
import os
import random
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom

from clamplib.audio import WINDOW_SECONDS, Waveform
from clamplib.audio.decoding import windows
from clamplib.audio.spectral import BINS, MINIMUM, OCTAVES, PITCH_CLASSES, RATE, spectral_features, spectrogram
from clamplib.formats.notes import read_notes
from clamplib.jobs import Report, run_batch
from recipes.mini.build import audio_name, facts_of, held_out_clips, in_order, read_jsonl, text_fields, write_jsonl
from recipes.mini.forms import FLAT_MODES, SEMITONES, in_key, moved_tonic, save_forms
from recipes.mini.render import MERLIN, TIMGM6MB, render
from recipes.mini.rewrite import performed

MOVED = "audio/moved/"
KEYS = 5  # per training piece
MOVED_FORMS = 4  # files of a piece that are written in its other keys
TONE = 7.0  # standard deviation of an octave's level, in dB
STRETCH = 0.1  # largest change of tempo, as a share
NOISE = 0.08  # standard deviation, added to features


def main(argv: list[str] | None = None) -> int:
    """Render what is missing. Pieces that cannot be played are counted and left out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="the folder that recipes.mini.build made, for example out/mini")
    parser.add_argument("--held_out", action="store_true", help="only the held-out clips")
    parser.add_argument("--workers", type=int, help="processes (default: all cores)")
    args = parser.parse_args(argv)
    names = [audio_name(record["files"][""]) for record in held_out_clips(args.data)]
    reports = [play(names, args.data, MERLIN, args.workers)]
    if not args.held_out:
        evaluated = [audio_name(line["filepaths"]) for line in read_jsonl(args.data / "eval.jsonl")]
        records = training_records(args.data)
        tunes = [audio_name(record["files"][""]) for record in records]
        reports.append(play([*tunes, *evaluated], args.data, TIMGM6MB, args.workers))
        played = [record for record in records if _played(args.data, audio_name(record["files"][""])).exists()]
        notes = {line["id"]: line["filepaths"] for line in read_jsonl(args.data / "train.jsonl")}
        lines = in_order(
            partial(audio_lines, data=args.data), [(record, notes[record["id"]]) for record in played], args.workers
        )
        write_jsonl(args.data / "train_audio.jsonl", lines)
        names += evaluated + [file for line in lines for file in line["filepaths"] if file.startswith("audio/")]
    reports.append(hear(names, args.data, args.workers))
    for report in reports:
        print(report.summary())
    return 0


def training_records(data: Path) -> list[dict]:
    """Returns the records of the pieces in train.jsonl."""
    names = {line["id"] for line in read_jsonl(data / "train.jsonl")}
    return [record for record in read_jsonl(data / "pieces.jsonl") if record["id"] in names]


def audio_lines(piece: tuple[dict, list[str]], data: Path) -> list[dict]:
    """Returns lines for training on audio: a piece in its own key and in others.

    Args:
        piece: its record of pieces.jsonl, and the names of its files in the canonical form, which are written once more
            for every other key.
        data: the folder with all files.
    """
    record, notes = piece
    rng = random.Random(f"audio of {record['id']}")
    facts, audio = facts_of(record), audio_name(record["files"][""])
    lines = [{"id": record["id"], "filepaths": [*notes, audio, _variant(audio)], **text_fields(facts, rng)}]
    if facts.tonic is None:
        return lines
    forms = [(data / name).read_text("utf-8") for name in notes[:MOVED_FORMS]]
    for semitones in sorted(rng.sample(SEMITONES, KEYS - 1)):
        tonic = moved_tonic(facts.tonic, semitones, facts.mode in FLAT_MODES)
        name = f"{record['id']}@{semitones:+d}"
        scores = save_forms([in_key(form, semitones) for form in forms], data / "moved", name)
        copy = audio.replace("audio/train/", MOVED).replace(".npy", f"@{semitones:+d}.npy")
        texts = text_fields(replace(facts, tonic=tonic), rng)
        lines.append({"id": name, "filepaths": [*scores, copy, _variant(copy)], **texts})
    return lines


def tune_of(name: str) -> str:
    """Returns the name of the features of the original recording that these features derive from (maybe themselves)."""
    return re.sub(r"[@~].*", ".npy", name.replace(MOVED, "audio/train/"))


def play(names: Iterable[str], data: Path, font: tuple[str, str], workers: int | None) -> Report:
    """Writes the spectrograms that audio features of these names are computed from."""
    names = sorted(names)
    return run_batch(
        partial(_play, data=data, font=font),
        [_notes(data, name) for name in names],
        [_played(data, name) for name in names],
        output_root=data / "played",
        workers=workers,
        description=font[0],
    )


def hear(names: Iterable[str], data: Path, workers: int | None) -> Report:
    """Writes the audio features of these names whose spectrograms exist."""
    hearings = []
    for name in sorted(names):
        hearing = Hearing(data, name)
        if Path(hearing).exists():
            hearings.append(hearing)
    return run_batch(
        _hear,
        hearings,
        [data / hearing.name for hearing in hearings],
        output_root=data / "audio",
        workers=workers,
        description="features",
    )


@dataclass(frozen=True)
class Hearing(os.PathLike):
    """Audio features to compute from a spectrogram, whose path this is."""

    data: Path
    name: str

    def __fspath__(self) -> str:
        return str(_played(self.data, tune_of(self.name)))

    @property
    def semitones(self) -> int:
        """Semitones from the key of the tune to the key of the copy."""
        return int((re.findall(r"@([+-]\d+)", self.name) or [0])[0])


def varied(levels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns a random part of a spectrogram [T, 84, frames] with another tempo and another, smooth tone."""
    kept = rng.integers((len(levels) + 1) // 2, len(levels) + 1)
    start = rng.integers(len(levels) - kept + 1)
    tone = np.interp(np.arange(BINS) / PITCH_CLASSES, np.arange(OCTAVES + 1), rng.normal(0, TONE, OCTAVES + 1))
    return stretched(levels[start : start + kept] + tone[:, None], rng.uniform(1 - STRETCH, 1 + STRETCH))


def stretched(levels: np.ndarray, times: float) -> np.ndarray:
    """Stretches a spectrogram [T, 84, frames] to `times` its length."""
    frames = levels.shape[2]
    whole = zoom(np.concatenate(levels, axis=1), (1, times), order=1)  # [84, T * frames * times]
    count = max(1, round(whole.shape[1] / frames))
    whole = np.pad(whole[:, : count * frames], ((0, 0), (0, max(0, count * frames - whole.shape[1]))), mode="edge")
    return whole.reshape(BINS, count, frames).transpose(1, 0, 2)


def transposed(levels: np.ndarray, semitones: int) -> np.ndarray:
    """Transposes a spectrogram [T, 84, frames]; `semitones` below 0 lowers it."""
    return levels[:, np.clip(np.arange(BINS) - semitones, 0, BINS - 1)]


def _notes(data: Path, name: str) -> Path:
    return (data / name.replace("audio/", "mtf/", 1)).with_suffix(".mtf")


def _played(data: Path, name: str) -> Path:
    return data / name.replace("audio/", "played/", 1)


def _variant(name: str) -> str:
    return name.replace(".npy", "~.npy")


def _play(source: Path, target: Path, data: Path, font: tuple[str, str]) -> None:
    rng = random.Random(f"{source.parent.name}/{source.name}")
    music = read_notes(source.read_text("utf-8"))
    if font == TIMGM6MB:
        score = (data / "abc" / source.relative_to(data / "mtf")).with_suffix(".abc")
        bars = read_notes(score.read_text("utf-8")).bars if score.exists() else []
        music.bars = [starts[:2] for starts in bars]  # the upbeat, which MIDI does not tell
        music = performed(music, rng)
        font = rng.choice((TIMGM6MB, None))
    sound = render(music, font, rng)
    cut = list(windows(Waveform(sound, RATE), RATE, WINDOW_SECONDS, minimum=MINIMUM))
    _save(spectrogram(cut).astype(np.float16), target)


def _hear(hearing: Hearing, target: Path) -> None:
    levels = transposed(np.load(hearing).astype(np.float32), hearing.semitones)
    if "~" in hearing.name:
        rng = np.random.default_rng(list(hearing.name.encode()))
        features = spectral_features(varied(levels, rng))
        features = (features + rng.normal(0, NOISE, features.shape)).astype(np.float32)
    else:
        features = spectral_features(levels)
    _save(features[None], target)  # [1, T, 448]


def _save(array: np.ndarray, target: Path) -> None:
    with target.open("wb") as out:
        np.save(out, array)


if __name__ == "__main__":
    sys.exit(main())
