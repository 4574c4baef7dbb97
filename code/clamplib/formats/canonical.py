"""One form for the notes of ABC and MIDI, whatever hand wrote them.

A variant whose config.json says `"notes": "canonical"` reads symbolic music in this form alone, as `mini` does. It
keeps the melody, the bass that goes with it, the meter and the key. What people and programs write differently is gone:
ticks, velocities, programs, the ends of notes, where ornaments stand, accompaniment, repeats that are played out, note
values and the layout of bars.

    N:canonical
    M:6/8                       the meter, if the music states it
    L:1/8                       the melody's usual note, if the music has beats
    V:2                         the mean number of notes that sound together, if it is above 1
    P:4                         the number of parts that play one note at a time, from three
    B:16                        the number of bars in which the melody has notes, without an upbeat
    Z:bow grace slur            marks that the music was written with, if it is ABC and has any
    E m A,..|                   the bass at the beginning of the bar, where it changes
    E m E5..G5..B5..|           a bar: two characters for each step, a pitch or ..

Every bar begins with the key: the tonic, and a letter for the mode (major: a space). It is the stated key if the notes
agree. Notes are written as if the signature had no sharps or flats. A step is half of the melody's usual note.
"""

import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter

import numpy as np

from clamplib.formats.meter import UNIT, find_bars, has_beat, on_pulse, without_drift
from clamplib.formats.mtf import FIRST_WORD
from clamplib.formats.notes import Music, Note, read_notes

MUSIC = re.compile(r"(?m)^[A-Za-z]:|\|")  # a header line or a bar line; the words of a sentence hold notes too
CANONICAL = "canonical"  # the name of the form in a variant's config.json
FIRST_LINE = "N:canonical\n"  # marks a text in this form, and is not read as a patch
PITCHES = "CcDdEFfGgAaB"  # a small letter is a sharp
SCALE = (0, 2, 4, 5, 7, 9, 11)
MAJOR_TONICS = {sharps: 7 * sharps % 12 for sharps in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, 6)}
SCALES = {sharps: [(tonic + degree) % 12 for degree in SCALE] for sharps, tonic in MAJOR_TONICS.items()}
MODES = {0: " ", 9: "m", 2: "d", 7: "x", 4: "p", 5: "l", 11: "o"}  # by degree of the tonic, the likeliest first
MINOR = 9  # semitones from the tonic of a major key to that of the minor key with its signature
MINOR_MODES = "mdp"  # whose tonics are spelled as those of minor keys
LIKELY = list(MODES)
COMMON = (0, 9, 2, 7)  # degrees that a final note makes the tonic
NAMES = "C Db D Eb E F F# G Ab A Bb B".split()
MINOR_NAMES = "C C# D Eb E F F# G G# A Bb B".split()
TOLERANCE = 0.03  # share of the notes that may speak against a stated signature
TOGETHER = 0.06  # quarter notes between onsets of one chord
HELD = 0.2  # quarter notes by which a note may overlap the next one of its line, as played or as transcribed from sound
ONE_AT_A_TIME = 0.8  # onsets per note of a part that plays one note at a time, at least
FEWEST_SINGLE_PARTS = 3  # programs write the chords of an accompanied tune as two
FAR_BELOW = 11  # semitones below the notes around it: a note of the accompaniment
NEAR_BELOW = 4  # notes on each side that count as around it
FAR_ABOVE = 13  # an overtone that was heard as a note; one in 750 notes of melodies is so high
NEAR_ABOVE = 8
DEFAULT_METER = (4, 4)
GRID = 24  # steps of a quarter note on which written notes stand
MAX_STEPS = 28  # of one patch
CHARACTERS = 2  # of a step
MAX_BARS = 100_000
PHRASES = (48, 40, 36, 32, 24, 20, 18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4)  # bars that are compared for repeats
# by a number of bars, the place in PHRASES of the longest phrase that has no more
FIRST_PHRASE = [sum(size > bars for size in PHRASES) for bars in range(PHRASES[0] + 1)]
NEAR = 0.01  # quarter notes
LONGEST = 2.0  # quarter notes that a step counts as, at most


def canonical(text: str) -> str:
    """Writes ABC or MTF in the canonical form. Text that has this form, or no music, is returned as it is."""
    if text.startswith(FIRST_LINE) or not (text.startswith(FIRST_WORD) or MUSIC.search(text)):
        return text
    music = read_notes(text)
    return write(music) if any(music.parts) else text


def write(music: Music) -> str:
    """Writes music with at least one note in the canonical form."""
    number = melody_part(music.parts)
    melody = music.parts[number]
    line = top_line(melody)
    rest = [note for place, part in enumerate(music.parts) for note in part if place != number]
    if len(line) < len(melody):
        kept = set(line)
        rest += [note for note in melody if note not in kept]
    has_beats = True
    if not music.bars:
        music, line, rest, has_beats = _on_beats(music, line, rest)
    onsets, pitches = [note.onset for note in line], [note.pitch for note in line]
    bass = [(note.onset, note.pitch) for note in sorted(rest)] or [(time, 36 + root) for time, root in music.roots]
    sharps, tonic = find_key(onsets, pitches, music.key)
    if len(music.parts) > 1 and tonic == MAJOR_TONICS[sharps] and final_bass(music.parts) == (tonic + MINOR) % 12:
        tonic = (tonic + MINOR) % 12  # programs write a signature without a mode, or as that of a major key
    unit = find_unit(onsets)
    spans = _meter_spans(music, onsets[-1])
    if music.bars:
        starts = music.bars[number]
    else:
        starts = _bar_starts(spans, onsets, pitches, bass, MAJOR_TONICS[sharps], unit)
    starts = _whole(starts)
    lines = [FIRST_LINE]
    if spans:
        lines.append("M:{}/{}\n".format(*_first_meter(spans)))
    if has_beats:
        lines.append(f"L:1/{4 / unit:.0f}\n")
    if rest and (voices := _voices(music.parts)) > 1:
        lines.append(f"V:{voices}\n")
    if single := _single_parts(music.parts):
        lines.append(f"P:{single}\n")
    shift = (MAJOR_TONICS[sharps] + 5) % 12 - 5  # the nearest way to C
    bar_steps = _bar_steps(starts, unit)
    part_steps = _part_steps(bar_steps)
    bars = list(_bars([(t, p - shift) for t, p in zip(onsets, pitches, strict=True)], starts, unit, part_steps))
    texts = [_melody_text(notes) for _, notes in bars]
    # In MIDI that plays repeats out, a phrase ends with the upbeat of what follows.
    places = _fold(texts, None if music.bars else CHARACTERS * (3 * part_steps // 4))
    written = dict.fromkeys(bars[place][0] for place in places)
    basses = _bass([(time, pitch - shift) for time, pitch in bass], starts, unit, bar_steps // 2, written)
    upbeat = min(bars[places[0]][1]) > 0
    lines.append(f"B:{len(written) - upbeat}\n")
    if music.marks:
        lines.append(f"Z:{' '.join(sorted(music.marks))}\n")
    key = key_name(sharps, tonic)
    for place in places:
        if low := basses.pop(bars[place][0], ""):
            lines.append(f"{key} {low}")
        lines.append(f"{key} {texts[place]}")
    return "".join(lines)


# ------------------------------------------------------------------------------------ melody


def melody_part(parts: Sequence[Sequence[Note]]) -> int:
    """Chooses the part that looks most like a melody: high, one note at a time, and there most of the time."""
    if len(parts) == 1:
        return 0
    counts = _onset_counts(parts)
    most = max(counts)
    scores = []
    for part, count in zip(parts, counts, strict=True):
        height = sum(note.pitch for note in part) / len(part) / 12  # octaves
        scores.append(height + 2 * count / len(part) + 2 * min(count / most, 0.5))
    return scores.index(max(scores))


def top_line(notes: Sequence[Note]) -> list[Note]:
    """Returns the highest notes, without those below a note that still sounds, or far from the notes around them."""
    if _follow(notes):
        return list(notes)
    line = _highest(notes)
    if len(line) == len(notes):
        return line
    overtones = {note for note, step in _steps_from_median(line, NEAR_ABOVE) if step >= FAR_ABOVE}
    if overtones:
        line = _highest([note for note in notes if note not in overtones])
    return [note for note, step in _steps_from_median(line, NEAR_BELOW) if step > -FAR_BELOW]


def _highest(notes: Sequence[Note]) -> list[Note]:
    """The highest of the notes that begin together, unless it begins below a note that still sounds."""
    line: list[Note] = []
    for note in sorted(notes, key=lambda note: (note.onset, -note.pitch)):
        if line and note.onset - line[-1].onset < TOGETHER:
            if note.pitch > line[-1].pitch:
                line[-1] = note
        elif not line or note.pitch > line[-1].pitch or note.onset > line[-1].end - HELD:
            line.append(note)
    return line


def _steps_from_median(line: Sequence[Note], near: int) -> Iterator[tuple[Note, int]]:
    """Yields each note of a line, and how many semitones it is above the median of as many notes on each side."""
    for number, note in enumerate(line):
        around = sorted(other.pitch for other in line[max(number - near, 0) : number + near + 1])
        yield note, note.pitch - around[len(around) // 2]


def _follow(notes: Sequence[Note]) -> bool:
    """Tells whether every note begins after the one before it, so that they are a line already."""
    start, end = -math.inf, -math.inf
    for onset, until, _ in notes:
        if onset <= end - HELD or onset - start < TOGETHER:
            return False
        start, end = onset, until
    return True


def _voices(parts: Sequence[Sequence[Note]]) -> int:
    """How many notes sound together on average."""
    sounding, end, covered = 0.0, 0.0, 0.0
    for note in sorted(note for part in parts for note in part):
        sounding += note.end - note.onset
        covered += max(note.end - max(note.onset, end), 0.0)
        end = max(end, note.end)
    return min(round(sounding / covered), 9) if covered else 1


def _single_parts(parts: Sequence[Sequence[Note]]) -> int:
    """How many parts play one note at a time, and at least a quarter as often as the busiest part.

    Fewer than FEWEST_SINGLE_PARTS count as none.
    """
    if len(parts) < FEWEST_SINGLE_PARTS:
        return 0
    counts = _onset_counts(parts)
    most = max(counts)
    single = sum(n >= ONE_AT_A_TIME * len(part) and 4 * n >= most for n, part in zip(counts, parts, strict=True))
    return min(single, 9) if single >= FEWEST_SINGLE_PARTS else 0


def _onset_counts(parts: Sequence[Sequence[Note]]) -> list[int]:
    """How many times notes begin in each part."""
    return [len({note.onset for note in part}) for part in parts]


# ------------------------------------------------------------------------------------ key


def find_key(onsets: Sequence[float], pitches: Sequence[int], stated: tuple[int, int] | None) -> tuple[int, int]:
    """Returns (sharps, pitch class of the tonic): as stated if the notes agree, or else as the notes suggest."""
    weights = [0.0] * 12
    for onset, after, pitch in zip(onsets, [*onsets[1:], onsets[-1] + 1], pitches, strict=True):
        length = after - onset
        weights[pitch % 12] += 0.01 if length < 0.01 else 2.0 if length > 2.0 else length
    total = sum(weights)
    fits = {}
    for sharps, scale in SCALES.items():
        fits[sharps] = sum([weights[pitch] for pitch in scale]) / total
    final = pitches[-1] % 12

    def rank(sharps: int) -> tuple:
        degree = (final - MAJOR_TONICS[sharps]) % 12
        return round(fits[sharps], 2), -LIKELY.index(degree) if degree in LIKELY else -len(LIKELY), -abs(sharps)

    best = max(MAJOR_TONICS, key=rank)
    if stated is not None:
        signature = (stated[0] + 5) % 12 - 5  # F sharp for G flat
        if fits[signature] >= fits[best] - TOLERANCE:
            return signature, stated[1]
    return best, final if (final - MAJOR_TONICS[best]) % 12 in COMMON else MAJOR_TONICS[best]


def final_bass(parts: Sequence[Sequence[Note]]) -> int:
    """Returns the pitch class of the lowest note of those that end the music."""
    last = max(part[-1].onset for part in parts)
    return min(note.pitch for part in parts for note in part if note.onset > last - 2 * TOGETHER) % 12


def key_name(sharps: int, tonic: int) -> str:
    """Returns a key in three characters, such as `E d` for E dorian and `Bb ` for B flat major."""
    mode = MODES.get((tonic - MAJOR_TONICS[sharps]) % 12, " ")
    return (MINOR_NAMES if mode in MINOR_MODES else NAMES)[tonic].ljust(2) + mode


# ------------------------------------------------------------------------------------ time


def find_unit(onsets: Sequence[float]) -> float:
    """Returns the melody's usual note value in quarter notes, a power of two. Short ornaments have little weight."""
    steps = [min(b - a, LONGEST) for a, b in zip(onsets, onsets[1:], strict=False) if b - a > NEAR]
    mean = sum(step * math.log2(step) for step in steps) / sum(steps) if steps else -1.0
    return 2.0 ** min(max(math.floor(mean + 0.25), -4), 1)


def _has_default_meter(music: Music, line: Sequence[Note]) -> bool:
    """Tells whether the meter is what programs write that know none, as those that transcribe sound."""
    if music.key is not None or [meter[1:] for meter in music.meters] != [DEFAULT_METER]:
        return False
    exact = sum(abs(note.onset * GRID - round(note.onset * GRID)) < NEAR * GRID for note in line)
    return exact < 0.9 * len(line)  # notes that are written, not heard or played, stand on the grid


def _on_beats(music: Music, line: list[Note], rest: list[Note]) -> tuple[Music, list[Note], list[Note], bool]:
    """Moves the notes of MIDI to the beats that are played, if they are not those of the file.

    Returns:
        The music with the meters that it then has, the melody, the other notes, and whether the file has beats. The
        parts of the music stay as they are.
    """
    if _has_default_meter(music, line):
        music = replace(music, meters=[])
    onsets = [note.onset for note in line]
    if has_beat(onsets):
        return music, line, rest, True
    corrected = without_drift(onsets)
    if corrected is None:
        return Music(music.parts), *_in_beats(line, rest, music.tempos), False
    times = _moved([time for time, *_ in music.meters], onsets, corrected)
    meters = [(time, *meter) for time, (_, *meter) in zip(times, music.meters, strict=True)]
    line, rest = _moved_notes(line, onsets, corrected), _moved_notes(rest, onsets, corrected)
    return replace(music, meters=meters), line, rest, True


def _moved(times: Sequence[float], onsets: Sequence[float], others: np.ndarray) -> list[float]:
    """Times moved as the onsets of the melody are moved to others."""
    return (np.asarray(times) + np.interp(times, onsets, others - np.asarray(onsets))).tolist() if times else []


def _moved_notes(notes: list[Note], onsets: Sequence[float], others: np.ndarray) -> list[Note]:
    moved = _moved([note.onset for note in notes], onsets, others)
    return [Note(time, time + n.end - n.onset, n.pitch) for n, time in zip(notes, moved, strict=True)]


def _in_beats(line: list[Note], rest: list[Note], tempos: list) -> tuple[list[Note], list[Note]]:
    """Notes whose onsets are counted by the pulse that is played, for performances."""
    times = sorted({note.onset for note in [*line, *rest]})
    seconds, now, tempo, number = [], 0.0, 0.5, 0
    before = 0.0
    for time in times:
        while number < len(tempos) and tempos[number][0] <= time:
            now += (tempos[number][0] - before) * tempo
            before, tempo = tempos[number]
            number += 1
        now += (time - before) * tempo
        before = time
        seconds.append(now)
    counts = dict(zip(times, on_pulse(seconds) / 4, strict=True))
    line = [Note(counts[n.onset], counts[n.onset] + n.end - n.onset, n.pitch) for n in line]
    kept = [line[0]] + [b for a, b in zip(line, line[1:], strict=False) if b.onset > a.onset]
    return kept, [Note(counts[n.onset], counts[n.onset] + n.end - n.onset, n.pitch) for n in rest]


def _meter_spans(music: Music, last: float) -> list[tuple[float, float, tuple[int, int]]]:
    """From when until when each time signature holds, and its meter.

    Of several at one time, the last one does. Those after the last note are left out.
    """
    meters = {time: (beats, unit) for time, beats, unit in sorted(music.meters, key=itemgetter(0)) if time <= last}
    if len(set(meters.values())) > 1 and min(meters) > 0:
        meters = {0.0: DEFAULT_METER, **meters}  # as the standard of MIDI says
    ends = [*list(meters)[1:], last + 1]
    return [(time, end, meter) for (time, meter), end in zip(meters.items(), ends, strict=False)]


def _first_meter(spans: Sequence[tuple[float, float, tuple[int, int]]]) -> tuple[int, int]:
    """The first meter that holds for more than one bar: programs write an upbeat as a bar of its own meter."""
    for start, end, (beats, unit) in spans:
        if end - start > 4 * beats / unit + NEAR:
            return beats, unit
    return spans[0][2]


def _bar_starts(
    spans: Sequence[tuple[float, float, tuple[int, int]]],
    onsets: list[float],
    pitches: list[int],
    bass: list[tuple[float, int]],
    tonic: int,
    unit: float,
) -> list[float]:
    """Where the bars of MIDI begin: as several time signatures say, or where the notes suggest."""
    if len({meter for _, _, meter in spans}) > 1:
        starts: list[float] = []
        for start, end, (beats, value) in spans:
            length = 4 * beats / value
            upbeat = (end - start) % length
            if not starts and unit / 4 < upbeat < length - unit / 4:
                starts.append(start)
                start += upbeat
            count = min(math.ceil((end - start) / length - NEAR), MAX_BARS - len(starts))
            starts += [start + length * number for number in range(count)]
        return starts or [0.0]
    scale = UNIT / unit  # to eighth notes

    def on_step(time: float) -> float:
        return round(time * scale * 4) / 4

    beats, value = spans[0][2] if spans else (0, 0)
    starts = find_bars(
        [on_step(time) for time in onsets],
        pitches,
        [(on_step(time), pitch) for time, pitch in bass],
        tonic,
        (beats, value / scale) if beats else None,
    )
    return [start / scale for start in starts]


def _whole(starts: list[float]) -> list[float]:
    """Bar starts with the two parts of a bar joined that a repeat or an ending divides."""
    lengths = [b - a for a, b in zip(starts, starts[1:], strict=False)]
    if not lengths:
        return starts
    usual = Counter(round(length, 3) for length in lengths).most_common(1)[0][0]
    joined = [starts[0]]
    if lengths[0] < usual - NEAR:
        joined[0] = starts[1] - usual  # the upbeat stands at the end of its bar
    skip = False
    for number in range(1, len(starts)):
        if skip:
            skip = False
            continue
        joined.append(starts[number])
        if number < len(lengths) - 1 and abs(lengths[number] + lengths[number + 1] - usual) < NEAR:
            skip = True
    return joined


def _bars(
    melody: list[tuple[float, int]], starts: list[float], unit: float, part_steps: int
) -> Iterator[tuple[int, dict[int, int]]]:
    """Yields the number of each bar that has notes, and its pitches by step; a long bar yields several parts."""
    step = unit / 2
    parts: dict[tuple[int, int], dict[int, int]] = {}
    early = step / 2 - NEAR
    for onset, pitch in melody:
        bar = bisect_right(starts, onset + early) - 1
        if bar < 0:
            bar = 0
        place = round((onset - starts[bar]) / step - NEAR)
        number = 0
        if not 0 <= place < part_steps:
            place = max(place, 0)
            number, place = min(place // part_steps, 99), place % part_steps
        part = parts.get((bar, number))
        if part is None:
            part = parts[bar, number] = {}
        if place in part and place + 1 < part_steps:  # a note of a tuplet
            place += 1
        if place not in part:
            part[place] = pitch
    for bar, part in sorted(parts):
        yield bar, parts[bar, part]


def _bar_steps(starts: list[float], unit: float) -> int:
    """The number of steps in most bars."""
    lengths = Counter(round((b - a) / unit * 2) for a, b in zip(starts, starts[1:], strict=False))
    return max(lengths.most_common(1)[0][0] if lengths else 16, 1)


def _part_steps(steps: int) -> int:
    """The number of steps in a patch: a bar, or a half or a quarter of it if it has too many."""
    while steps > MAX_STEPS and steps % 2 == 0:
        steps //= 2
    return min(steps, MAX_STEPS)


def _bass(
    notes: list[tuple[float, int]], starts: list[float], unit: float, half: int, written: Iterable[int]
) -> dict[int, str]:
    """The text of the bass in each written bar in which it changes: the lowest note of each half of so many steps."""
    if not notes:
        return {}
    half = min(max(half, 1), MAX_STEPS)
    lowest: dict[tuple[int, int], int] = {}
    for onset, pitch in notes:
        bar = max(bisect_right(starts, onset + unit / 4 - NEAR) - 1, 0)
        key = bar, min(max(int((onset - starts[bar] + unit / 4) / (unit / 2)) // half, 0), 1)
        lowest[key] = min(lowest.get(key, pitch), pitch)
    texts: dict[int, str] = {}
    before = None
    for bar in written:
        steps = {}
        for number in (0, 1):
            pitch = lowest.get((bar, number))
            if pitch is not None and pitch % 12 != before:
                steps[number] = before = pitch % 12
        if steps:
            first = PITCHES[steps[0]] + "," if 0 in steps else ".."
            texts[bar] = first + (".." * (half - 1) + PITCHES[steps[1]] + "," if 1 in steps else "") + "|\n"
    return texts


def _pitch_name(pitch: int) -> str:
    return PITCHES[pitch % 12] + str(min(max(pitch // 12, 0), 9))


PITCH_NAMES = {pitch: _pitch_name(pitch) for pitch in range(128)}


def _melody_text(notes: dict[int, int]) -> str:
    steps = [".."] * (max(notes) + 1)
    for place, pitch in notes.items():
        steps[place] = PITCH_NAMES[pitch] if pitch in PITCH_NAMES else _pitch_name(pitch)
    return "".join(steps) + "|\n"


def _fold(texts: Sequence[str], last_bar: int | None = None) -> list[int]:
    """Finds the bars that are left without phrases that repeat the bars before them.

    Args:
        texts: of the bars.
        last_bar: the characters of a phrase's last bar that must agree; None: all.

    Returns:
        The places of the bars.
    """
    places: list[int] = []
    kept: list[str] = []
    place = 0
    while place < len(texts):
        longest = min(len(kept), len(texts) - place, PHRASES[0])
        for size in PHRASES[FIRST_PHRASE[longest] :]:
            if kept[-size] != texts[place] and kept[1 - size] != texts[place + 1]:
                continue  # most phrases differ in both of their first bars, and need no other comparison
            pairs = zip(kept[-size:], texts[place : place + size], strict=True)
            different = sum(a != b for a, b in pairs)
            end, repeated_end = kept[-1], texts[place + size - 1]
            if end != repeated_end and _beginning(end, last_bar) == _beginning(repeated_end, last_bar):
                different -= 1
            if different <= size // 8:
                place += size
                break
        else:
            places.append(place)
            kept.append(texts[place])
            place += 1
    return places


def _beginning(text: str, count: int | None) -> str:
    return text[:count].rstrip(".|\n")
