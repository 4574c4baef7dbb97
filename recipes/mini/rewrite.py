"""Writes the notes of a piece as other people and programs would, for training."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

from clamplib.formats.canonical import MINOR
from clamplib.formats.notes import Music, Note

TRIADS = ((0, 4, 7), (2, 5, 9), (4, 7, 11), (5, 9, 0), (7, 11, 2), (9, 0, 4))  # of a major scale
ACCOMPANIED = 0.5  # share of the performances of a single voice
MISHEARD = 0.3  # share of the performances that are transcribed from sound
EXCERPTS = 0.5  # share of these that end where half a minute of sound may
EXCERPT_QUARTERS = (24, 72)  # length of the music without its repeats
EIGHTH = 0.5  # quarter notes
OVERLAP = 0.15  # quarter notes by which notes are held into the next one, at most
OVERTONES = (12, 12, 19, 24)  # semitones above the note
STYLES = ("block", "oom-pah", "arpeggio", "drone")


def performed(music: Music, rng: random.Random) -> Music:
    """Performs a piece as somebody might: with another touch, register, swing or timing, alone or accompanied."""
    music = replace(music, parts=[list(part) for part in music.parts], roots=[], marks=set())
    if len(music.parts) == 1 and rng.random() < ACCOMPANIED:
        accompany(music, rng)
    for share, change in ((0.15, swing), (0.15, move_octave), (0.25, loosen), (0.5, touch)):
        if rng.random() < share:
            change(music, rng)
    music.bars = []
    music.parts = [sorted(part) for part in music.parts if part]
    return music


def transcribed(music: Music, rng: random.Random) -> Music:
    """Performs a piece and writes down what was heard, as MIDI: sometimes with mistakes, without meter or key."""
    music = performed(music, rng)
    if rng.random() < MISHEARD:
        mishear(music, rng)
        return music
    if rng.random() < 0.3:
        music.key = None
    elif music.key:
        music.key = as_midi_states(music.key)
    if rng.random() < 0.3:
        music.meters = []
    return music


def as_midi_states(key: tuple[int, int]) -> tuple[int, int]:
    """Returns the (sharps, tonic) of a key as MIDI can state it, which knows no other modes than major and minor."""
    sharps, tonic = key
    major = 7 * sharps % 12
    return sharps, tonic if (tonic - major) % 12 == MINOR else major


def accompany(music: Music, rng: random.Random) -> None:
    """Adds chords that fit the melody, on a channel of their own or on its channel."""
    style = rng.choice(STYLES)
    chords: list[Note] = []
    for start, length, triad in chords_of(music, halves=rng.random() < 0.6):
        chords += _strike([48 + pitch for pitch in triad], start, length, style, beat_length(music))
    if rng.random() < 0.15:
        music.parts[0] += chords
    else:
        music.parts.append(chords)


def with_chord_symbols(music: Music, rng: random.Random) -> Music:
    """Writes chord symbols over a melody."""
    roots = [(start, triad[0]) for start, _, triad in chords_of(music, halves=rng.random() < 0.6)]
    return replace(music, roots=roots)


def chords_of(music: Music, halves: bool) -> list[tuple[float, float, tuple[int, ...]]]:
    """Finds chords that fit a melody from its first whole bar on.

    Args:
        music: of one part.
        halves: bars of four quarter notes or more get a chord for each half, where they have one.

    Returns:
        For each chord its onset, its length and its pitch classes, the root first.
    """
    (melody,) = music.parts
    sharps = music.key[0] if music.key else 0
    bar, beat = bar_length(music), beat_length(music)
    length = bar / 2 if halves and bar >= 4 and round(bar / beat) % 2 == 0 else bar
    chords = []
    place = 0
    for first, end in bar_spans(music):
        start = first
        while start < end - 1e-4:
            until = min(start + length, end)
            sounding: list[Note] = []
            while place < len(melody) and melody[place].onset < until - 1e-4:
                if melody[place].onset > start - 1e-4:
                    sounding.append(melody[place])
                place += 1
            triad = chord_at(sounding, sharps)
            chords.append((start, until - start, tuple((degree + 7 * sharps) % 12 for degree in triad)))
            start = until
    return chords


def bar_length(music: Music) -> float:
    """The length of the first meter's bar in quarter notes."""
    beats, unit = music.meters[0][1:] if music.meters else (4, 4)
    return 4 * beats / unit


def beat_length(music: Music) -> float:
    """The length of the first meter's beat in quarter notes: three units in compound meters."""
    beats, unit = music.meters[0][1:] if music.meters else (4, 4)
    return (3 if unit == 8 and beats % 3 == 0 and beats > 3 else 1) * 4 / unit


def bar_spans(music: Music) -> list[tuple[float, float]]:
    """The bars from the first whole one on, as written; those after the last bar line follow the meter."""
    bar, end = bar_length(music), max(note.end for note in music.parts[0])
    starts = [start for start in music.bars[0] if start < end - 1e-4] if music.bars else [0.0]
    if upbeat_length(music):
        starts = starts[1:] or starts
    while starts[-1] + bar < end - 1e-4:
        starts.append(starts[-1] + bar)
    return list(zip(starts, [*starts[1:], starts[-1] + bar], strict=True))


def upbeat_length(music: Music) -> float:
    """The length of the notes before the first whole bar in quarter notes."""
    first = music.bars[0][1:2] if music.bars else []
    return first[0] if first and first[0] < bar_length(music) - 1e-4 else 0.0


def chord_at(notes: Sequence[Note], sharps: int) -> tuple[int, ...]:
    """Returns the triad of the key that fits notes best, as semitones above the major key's tonic."""
    fits = {}
    for triad in (TRIADS[number] for number in (0, 4, 3, 5, 1, 2)):  # tonic, dominant and subdominant first
        inside = [note.end - note.onset for note in notes if (note.pitch - 7 * sharps) % 12 in triad]
        fits[triad] = round(sum(inside), 2)
    return max(fits, key=fits.get)


def _strike(pitches: list[int], start: float, length: float, style: str, beat: float) -> list[Note]:
    root, third, fifth = pitches
    end = start + length
    if style == "block":
        return [Note(start, end, pitch) for pitch in pitches]
    if style == "drone":
        return [Note(start, end, root - 12), Note(start, end, fifth - 12)]
    notes = []
    if style == "oom-pah":
        for number in range(max(round(length / beat), 1)):
            time = start + number * beat
            struck = pitches if number else [root - 12]
            notes += [Note(time, min(time + beat, end), pitch) for pitch in struck]
        return notes
    order = (root, third, fifth) if beat % 1 else (root, third, fifth, third)
    for number in range(max(round(length / EIGHTH), 1)):
        time = start + number * EIGHTH
        notes.append(Note(time, min(time + EIGHTH, end), order[number % len(order)]))
    return notes


def swing(music: Music, rng: random.Random) -> None:
    """Delays the off-beat eighth notes of even meters."""
    if music.meters and music.meters[0][2] == 8:
        return
    late = rng.uniform(0.06, 0.18)
    upbeat = upbeat_length(music)

    def moved(time: float) -> float:
        return time + late if abs((time - upbeat) % 1 - 0.5) < 0.01 else time

    for number, part in enumerate(music.parts):
        music.parts[number] = [Note(moved(n.onset), max(moved(n.end), moved(n.onset) + 0.05), n.pitch) for n in part]


def move_octave(music: Music, rng: random.Random) -> None:
    change = rng.choice((-12, 12))
    music.parts[0] = [note._replace(pitch=note.pitch + change) for note in music.parts[0]]


def loosen(music: Music, rng: random.Random) -> None:
    """Moves every onset a little, as a hand does."""
    spread = rng.uniform(0.005, 0.045)
    for number, part in enumerate(music.parts):
        loose = []
        for note in part:
            onset = max(note.onset + rng.gauss(0, spread), 0.0)
            loose.append(Note(onset, max(note.end, onset + 0.05), note.pitch))
        music.parts[number] = sorted(loose)


def mishear(music: Music, rng: random.Random) -> None:
    """Makes the mistakes of a transcription of sound.

    Notes are missing, in two pieces, in another octave or doubled by an overtone. All parts are one, the beats of the
    file are not those of the music, and it has neither meter nor key. It may end before the music does.
    """
    loosen(music, rng)
    end = rng.uniform(*EXCERPT_QUARTERS) if rng.random() < EXCERPTS else math.inf
    share = rng.uniform(0.02, 0.12)
    overtones = rng.uniform(0.0, 0.15)
    speed = rng.uniform(0.6, 1.6) if rng.random() < 0.5 else 1.0
    heard = []
    for note in (note for part in music.parts for note in part):
        fate = rng.random()
        if note.onset > end or fate < share and len(heard) > 16:
            continue
        note = Note(note.onset * speed, note.end * speed, note.pitch)
        middle = (note.onset + note.end) / 2
        if fate < 1.3 * share:
            note = note._replace(pitch=note.pitch + rng.choice((-12, 12)))
        elif fate < 1.8 * share:
            heard.append(note._replace(end=middle))
            note = note._replace(onset=middle)
        if rng.random() < overtones:
            heard.append(Note(note.onset, middle, note.pitch + rng.choice(OVERTONES)))
        heard.append(note)
    music.parts = [sorted(heard)]
    music.key, music.meters = None, []


def touch(music: Music, rng: random.Random) -> None:
    """Holds notes shorter or longer than written."""
    share = rng.choice((0.4, 0.6, 0.8, 0.95, 1.3))
    for number, part in enumerate(music.parts):
        ends = [min(note.onset + share * (note.end - note.onset), note.end + OVERLAP) for note in part]
        music.parts[number] = [note._replace(end=end) for note, end in zip(part, ends, strict=True)]
