"""How mini's data is made: no label reaches the notes, near-duplicates share a side, copies are faithful."""

import csv
import json
import random
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import mido
import numpy as np
import pytest

from clamplib.app.demo import HELD_OUT
from clamplib.audio.spectral import RATE
from clamplib.formats.canonical import canonical, top_line, write
from clamplib.formats.mtf import midi_to_mtf
from clamplib.formats.notes import Music, parse_key, read_notes
from clamplib.models import distributed
from clamplib.models.settings import load_settings
from recipes.mini import build, hands, leave_out
from recipes.mini.convert import Notes, convert, opening_steps, to_midi, without_labels
from recipes.mini.corpus import KINDS, CorpusPiece, corpus_pieces, read_key, sung_language, with_key
from recipes.mini.elsewhere import drawn_clips
from recipes.mini.evaluate import HeldOut, chance_mrr, equal_text_ceiling, is_right, mrr, tfidf_neighbors
from recipes.mini.rewrite import accompany, as_midi_states, mishear, swing, touch, transcribed, with_chord_symbols
from recipes.mini.texts import Facts

TUNE = """X:7
T:The Test of Titles
R:reel
O:Ireland
N:"collected by nobody"
C:A. Composer
Q:1/4=120
M:C|
L:1/8
K:D
"^Lively reel"A2|"D"d2fd Adfd|"G"gfed "A7"c2A2|d2fd Adfd|"A"efec "D"d2:|
w: la la la
"""
CONFIG = Path(__file__).parents[2] / "code/config.py"
RECIPE = Path(__file__).parents[2] / "recipes/mini"
MUSIC = "M:4/4\nL:1/8\nK:Ddor\nD2FA dAFA|G2EC EGcE|D2FA dAfd|ecAG F2D2|d2fd adfd|c2ec gcec|A2FA dAFA|GECE D4|\n"
MUSIC_AS_MTF = "ticks_per_beat 2\nnote_on 0 0 62 90\nnote_on 2 0 62 0\nnote_on 0 0 65 90\nnote_on 2 0 65 0"
UP = str.maketrans("cdefgaA", "defgabB")  # the notes of the tune
UNKNOWN = Facts(
    **dict.fromkeys("title kind tonic mode metre tempo mood composer born origin collection song_language".split()),
    instruments=(),
)


@pytest.fixture(scope="module")
def tune() -> Notes:
    return convert(CorpusPiece("test/1", UNKNOWN, abc=TUNE))


def test_no_label_reaches_the_notes(tune):
    for text in (tune.abc, tune.raw, tune.mtf):
        assert not re.search("(?i)title|reel|ireland|nobody|composer|lively| la ", text)
        assert "Q:" not in text
    assert '"D"' in tune.raw and '"A7"' in tune.abc  # chord symbols are music


def test_an_opening_is_the_same_in_any_key_and_with_another_upbeat(tune):
    copy = convert(CorpusPiece("test/1", UNKNOWN, abc=TUNE.replace("K:D", "K:E").translate(UP)))
    assert copy.opening == tune.opening
    assert copy.key_field == "E"
    other_upbeat = TUNE.replace('"^Lively reel"A2|', "A/B/c|")
    assert convert(CorpusPiece("test/2", UNKNOWN, abc=other_upbeat)).opening == tune.opening
    assert convert(CorpusPiece("test/3", UNKNOWN, abc=TUNE.replace("d2fd", "f2df"))).opening != tune.opening


def test_opening_reads_the_first_voice_and_the_top_of_chords():
    assert opening_steps("L:1/8\nK:C\n[V:1]C2E2G2c2|[V:2]z8|\n[V:1][CE]2F2G2A2|[V:2]z8|\n") == "2 2 3 -5 1 1 1"


@pytest.mark.parametrize(
    "field, key",
    [
        ("D", ("D", "major")),
        ("Am", ("A", "minor")),
        ("F# Minor", ("F#", "minor")),
        ("ADor", ("A", "dorian")),
        ("EM", ("E", "minor")),  # the case of a mode has no meaning
        ("Bbmix", ("Bb", "mixolydian")),
        ("none", (None, None)),
    ],
)
def test_read_key(field, key):
    assert read_key(field) == key


def test_a_score_that_ends_on_the_relative_minor_is_minor():
    assert with_key(UNKNOWN, "G", 40).mode == "minor"
    assert with_key(UNKNOWN, "G", 40).tonic == "E"
    assert with_key(UNKNOWN, "G", 43).mode == "major"
    assert with_key(UNKNOWN, "Ab", 53).tonic == "F"


def test_the_language_of_a_song():
    lyric = "".join(f"<text>{word}</text>" for word in "und ich bin der Mann der nicht mit dir ist".split())
    assert sung_language(lyric) == "German"
    assert sung_language("<text>la</text>") is None


def test_the_corpus_is_read_in_a_fixed_order_with_its_kinds():
    found = list(corpus_pieces())
    assert [piece.id for piece in found] == [piece.id for piece in corpus_pieces()]
    assert len({piece.id for piece in found}) == len(found) > 4000
    assert set(KINDS) <= {piece.facts.kind for piece in found}
    assert not any("essen" in piece.id or "palestrina" in piece.id or "josquin" in piece.id for piece in found)


def test_the_tunes_of_the_demo_are_held_out(tmp_path):
    by_id = {piece.id: piece for piece in corpus_pieces()}
    with HELD_OUT.open(encoding="utf-8", newline="") as lines:
        names = [row["tune"] for row in csv.DictReader(lines)]
    build.write_tune_table([{"id": name, "facts": asdict(by_id[name].facts)} for name in names], tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_bytes() == HELD_OUT.read_bytes()
    for name in names[::40]:
        assert build.bucket(convert(by_id[name]).opening) in build.HELD_OUT


def test_near_duplicates_share_a_side_and_equal_titles_leave_training(tmp_path):
    held = next(str(n) for n in range(1000) if build.bucket(str(n)) in build.HELD_OUT)
    train = [str(n) for n in range(1000) if build.bucket(str(n)) not in (*build.HELD_OUT, *build.EVALUATION)]
    evaluation = next(str(n) for n in range(1000) if build.bucket(str(n)) in build.EVALUATION)
    facts = {**vars(UNKNOWN), "kind": "reel", "tonic": "D", "mode": "major", "metre": "2/2", "instruments": []}

    def record(name: str, opening: str, title: str) -> dict:
        files = {"": [f"abc/{name}.abc", f"mtf/{name}.mtf"]}
        for file, text in zip(files[""], (MUSIC, MUSIC_AS_MTF), strict=True):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(text)
        return {"id": name, "opening": opening, "facts": {**facts, "title": title}, "files": files}

    records = [
        record("a", held, "Held"),
        record("b", held, "Held too"),
        record("c", train[0], "HELD!"),
        record("d", train[1], "Kept"),
        record("e", evaluation, "Judged"),
    ]
    records += [record(f"n{n}", opening, f"Other {n}") for n, opening in enumerate(train[2:40])]
    build.write_split(records, tmp_path)
    lines = {
        name: (tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines() for name in ("train", "heldout", "eval")
    }
    ids = {name: [json.loads(line)["id"] for line in found] for name, found in lines.items()}
    assert ids["heldout"] == ["a", "b"]
    assert ids["eval"] == ["e"]
    assert "d" in ids["train"] and not {"a", "b", "c", "e"} & set(ids["train"])
    assert "Held" not in "".join(lines["train"])


def test_every_key_of_a_piece_has_its_files_and_texts(tmp_path):
    for name, text in (("abc/a.abc", MUSIC), ("mtf/a.mtf", MUSIC_AS_MTF)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    facts = {**vars(UNKNOWN), "kind": "reel", "tonic": "D", "mode": "dorian", "instruments": []}
    record = {"id": "a", "facts": facts, "files": {"": ["abc/a.abc", "mtf/a.mtf"]}}
    own, *others = build.training_lines(record, tmp_path)
    assert len(others) == build.OTHER_KEYS and len({line["id"] for line in (own, *others)}) == 3
    assert " in D dorian" in own["analysis"].replace("Dorian", "dorian")
    first = (tmp_path / own["filepaths"][0]).read_text()
    assert first == canonical(MUSIC) and "\nD d " in first
    for line in others:
        tonic = line["id"].removeprefix("a@")
        assert (tmp_path / line["filepaths"][0]).read_text() == first.replace("\nD d", f"\n{tonic:2}d")
        assert line["filepaths"][0].startswith("notes/0/a@")
    again = build.training_lines(record, tmp_path)
    assert again == [own, *others]


def test_performances_are_of_the_same_piece():
    text = MUSIC.replace("K:Ddor", "K:C")
    music = read_notes(text)
    rng = random.Random(0)
    forms = [write(transcribed(music, rng)) for _ in range(120)]
    assert len(set(forms)) > 60
    assert write(read_notes(text)) == write(music)  # which did not change
    own = set(canonical(text).splitlines()[3:])
    shared = [len(own.intersection(form.splitlines())) for form in forms]
    assert sum(count > 2 for count in shared) > 36


def test_a_transcription_of_sound_has_neither_parts_nor_meter_nor_key():
    music = read_notes(MUSIC)
    count = len(music.parts[0])
    music.parts.append([note._replace(pitch=note.pitch - 24) for note in music.parts[0]])
    mishear(music, random.Random(3))
    (part,) = music.parts
    assert music.key is None and music.meters == []
    assert part == sorted(part) and 1.7 * count < len(part) < 2.6 * count


def test_accompaniment_and_swing_keep_to_the_bars_after_an_upbeat():
    music = read_notes("M:4/4\nL:1/8\nK:G\nG|" + "GABc dedB|cABG AGEF|" * 4)
    for seed in range(20):
        accompanied = replace(music, parts=[list(music.parts[0])])
        accompany(accompanied, random.Random(seed))
        chords = [note for part in accompanied.parts for note in part if note not in music.parts[0]]
        assert min(chords).onset == 0.5
        assert {0.5 + 4 * bar for bar in range(8)} <= {note.onset for note in chords}
    swung = replace(music, parts=[list(music.parts[0])])
    swing(swung, random.Random(0))
    late = [b.onset - a.onset for a, b in zip(music.parts[0], swung.parts[0], strict=True)]
    assert set(late[1::2]) == {0} and min(late[::2]) > 0.05


@pytest.mark.parametrize("meter, eighths", [("9/8", 9), ("6/8", 6), ("3/4", 6), ("2/2", 8), ("2/4", 4), ("12/8", 12)])
def test_chords_are_struck_on_eighth_notes_within_their_bars(meter, eighths):
    music = read_notes(f"M:{meter}\nL:1/8\nK:G\n" + ("G" * eighths + "|") * 4 + "GAB|" + ("G" * eighths + "|") * 2)
    bars = music.bars[0][:-1]
    for seed in range(20):
        accompanied = replace(music, parts=[list(music.parts[0])])
        accompany(accompanied, random.Random(seed))
        chords = {note for part in accompanied.parts for note in part if note not in music.parts[0]}
        assert all(note.onset % 0.5 == 0 and note.end > note.onset for note in chords)
        assert set(bars) <= {note.onset for note in chords}  # also after the short bar


def test_chord_symbols_fit_the_melody():
    music = read_notes("M:4/4\nL:1/8\nK:D\nA|" + "d2f2 a2f2|e2c2 A2c2|d8|")
    assert with_chord_symbols(music, random.Random(0)).roots[0] == (0.5, 2)
    assert {root for _, root in with_chord_symbols(music, random.Random(0)).roots} == {2, 9}


def test_long_notes_do_not_hide_the_next_ones():
    music = read_notes(MUSIC)
    for seed in range(20):
        held = replace(music, parts=[list(music.parts[0])])
        touch(held, random.Random(seed))
        assert len(top_line(held.parts[0])) == len(music.parts[0])


@pytest.mark.parametrize(
    "key, stated", [("D", (2, 2)), ("Bm", (2, 11)), ("Edor", (2, 2)), ("Amix", (2, 2)), ("Gb", (-6, 6))]
)
def test_midi_states_major_and_minor_keys(key, stated):
    assert as_midi_states(parse_key(key)) == stated


def test_jigs_in_nine_eight_are_slip_jigs():
    kinds = Counter((piece.facts.kind, piece.facts.metre) for piece in corpus_pieces() if piece.abc)
    assert kinds["jig", "9/8"] == 0 and kinds["slip jig", "9/8"] > 20


def test_some_transcriptions_end_before_the_music_does():
    """As half a minute of a recording does."""
    line = read_notes("M:4/4\nL:1/8\nK:G\n" + "GABc dedB|cABG AGEF|" * 32).parts[0]  # 256 quarter notes
    ends = []
    for seed in range(40):
        music = Music([list(line)])
        mishear(music, random.Random(seed))
        ends.append(music.parts[0][-1].onset)
    cut = [end for end in ends if end < 1.6 * 72 + 1]
    assert 10 < len(cut) < 30 and min(cut) > 0.6 * 24 - 1
    assert min(end for end in ends if end not in cut) > 0.6 * 250


def test_chance_and_ceiling():
    assert chance_mrr(2) == pytest.approx(0.75)
    assert equal_text_ceiling(["a", "a", "b"]) == pytest.approx((0.75 + 0.75 + 1) / 3)


def music_lines(text):
    """The bars of the canonical form, without its header."""
    return [line for line in canonical(text).splitlines() if line.endswith("|")]


def test_hands_write_the_same_tune():
    tune = without_labels(TUNE)
    plain = re.sub('"[^"]*"', "", tune)
    chords = hands.with_chords(plain)
    assert chords.count('"') == 2 * 5  # a chord for every bar, and the upbeat
    assert re.sub('"[^"]*"', "", chords).split() == plain.split()
    assert hands.with_chords(tune) == tune
    for seed in range(20):
        other = hands.relaid(chords, random.Random(seed))
        assert other != chords and canonical(other) == canonical(chords)
    played = midi_to_mtf(hands.by_hand(plain, random.Random(1)))
    pitches = [note.pitch for note in read_notes(played).parts[0]]
    assert sorted(pitches) == sorted(note.pitch for note in read_notes(plain).parts[0])
    assert music_lines(midi_to_mtf(hands.by_verovio(plain)))[:4] == music_lines(plain)[:4]


def test_a_telephone_carries_its_band_in_few_levels():
    time = np.arange(RATE) / RATE
    sound = sum(np.sin(2 * np.pi * frequency * time) for frequency in (100, 1000, 6000))
    heard = hands.over_telephone(sound)
    low, middle, high = np.abs(np.fft.rfft(heard))[[100, 1000, 6000]] / (RATE / 2)
    assert middle > 0.8 and low < 0.05 and high < 0.05
    assert len(np.unique(heard)) <= 255


def test_a_sentence_is_judged_by_every_field_it_names():
    jig = Facts(**{**vars(UNKNOWN), "kind": "jig", "mode": "dorian"})
    groups = {"dance": ["jig", "reel"], "minor": ["minor", "dorian"]}
    assert is_right(jig, {"kind": "dance", "mode": "minor"}, groups)
    assert not is_right(jig, {"kind": ["reel"]}, groups)
    assert not is_right(jig, {"kind": "dance", "metre": ["6/8"]}, groups)


def test_a_collection_is_left_out(tmp_path, capsys):
    lines = [{"id": f"{name}/1", "filepaths": [f"notes/0/{name}.abc"]} for name in ("a", "b")]
    build.write_jsonl(tmp_path / "train.jsonl", lines)
    assert leave_out.main([str(tmp_path), "b"]) == 0
    (kept,) = build.read_jsonl(tmp_path / "without/b/train.jsonl")
    assert kept["id"] == "a/1"
    assert (tmp_path / "without/b" / kept["filepaths"][0]).resolve() == (tmp_path / "notes/0/a.abc").resolve()
    settings = load_settings(tmp_path / "without/b/settings.py", config=CONFIG)
    assert Path(settings.CLAMP3_TRAIN_JSONL) == tmp_path / "without/b/train.jsonl"
    assert leave_out.main([str(tmp_path), "c"]) == 1
    assert "no pieces of c" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["1_symbolic", "2_audio"])
def test_processes_share_a_batch_of_the_same_size(stage, monkeypatch):
    sizes = set()
    for processes in (1, 2):
        monkeypatch.setattr(distributed, "world_size", lambda count=processes: count)
        settings = load_settings(RECIPE / "config.py", RECIPE / f"stages/{stage}.py", config=CONFIG)
        sizes.add((processes * settings.CLAMP3_BATCH_SIZE, processes * settings.M3_BATCH_SIZE))
    assert len(sizes) == 1


def test_a_folder_that_is_finished_is_kept(tmp_path):
    (tmp_path / "sources.json").write_text('{"openscore": false, "openewld": false, "essen": false}')
    for name in ("pieces", "train"):
        (tmp_path / f"{name}.jsonl").write_text("")
    before = sorted(tmp_path.iterdir())
    assert build.main([str(tmp_path)]) == 0
    assert sorted(tmp_path.iterdir()) == before
    assert build.main([str(tmp_path), "--essen"]) == 1


def test_every_kind_has_enough_clips():
    tunes = [{"id": str(number), "facts": {"kind": "march" if number % 40 == 0 else "jig"}} for number in range(400)]
    drawn = drawn_clips(tunes, ["jig", "march", "reel"])
    assert len(drawn) == len(set(drawn)) and 150 < len(drawn) < 158
    assert sum(number % 40 == 0 for number in drawn) == 8
    assert drawn[:150] == drawn_clips(tunes, [])


def test_clips_are_ranked_among_all_tunes():
    tunes = np.eye(3)
    clips = np.array([[1, 0, 0], [0.9, 0.1, 0.5]])
    assert mrr(clips, tunes, np.array([0, 1])) == pytest.approx((1 + 1 / 3) / 2)


def test_the_baseline_describes_a_tune_by_its_nearest_training_tunes(tmp_path):
    """The training tunes are those of train.jsonl, which has the canonical forms, not the ABC."""
    lines, records = [], []
    for number, notes in enumerate(("GABc dedB|", "EFGA BAGF|") * 6):
        name, text = f"tunes/{number}", ("a reel in G", "an air in E minor")[number % 2]
        lines.append({"id": name, "filepaths": [f"notes/0/{name}.abc"], "analysis": text})
        records.append({"id": name, "files": {"": [f"abc/{name}.abc", f"raw/{name}.abc"]}, "facts": asdict(Facts())})
        path = tmp_path / "abc" / f"{name}.abc"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"K:G\n{notes}{notes}\n", encoding="utf-8")
    build.write_jsonl(tmp_path / "train.jsonl", lines)
    build.write_jsonl(tmp_path / "pieces.jsonl", records)
    judged = HeldOut(records[:2], tmp_path)
    assert tfidf_neighbors(tmp_path, judged, ["an air in E minor", "a reel in G"]) == 0.5
    assert tfidf_neighbors(tmp_path, judged, ["a reel in G", "an air in E minor"]) == 1


def test_a_note_that_is_cut_off_ends():
    """Otherwise fluidsynth renders forever."""
    track = mido.MidiTrack([mido.Message("note_on", note=60), mido.Message("note_off", note=60, time=480 * 1000)])
    cut = hands._with_programs(mido.MidiFile(ticks_per_beat=480, tracks=[track]), random.Random(1))
    assert [message.type for message in cut.tracks[0]] == ["program_change", "note_on", "control_change"]
    assert cut.tracks[0][-1].control == 120  # all sound off


@pytest.mark.parametrize("lyric", ["<lyric/>", '<lyric number="1" />', "<lyric><text>la</text></lyric>"])
def test_midi_of_a_song_has_its_notes_and_no_lyrics(lyric):
    """An empty lyric ends itself: what follows it is music."""
    note = "<note><pitch><step>{}</step><octave>4</octave></pitch><duration>1</duration><type>quarter</type>{}</note>"
    notes = "".join(note.format(step, words) for step, words in zip("CDEF", (lyric, "", LYRIC, ""), strict=True))
    midi = to_midi(SONG.format(notes))
    played = [message.note for message in midi if message.type == "note_on" and message.velocity]
    assert played == [60, 62, 64, 65] and not any(message.type == "lyrics" for message in midi)


LYRIC = "<lyric><syllabic>single</syllabic><text>la</text></lyric>"
SONG = """<?xml version="1.0" encoding="UTF-8"?>
<score-partwise><part-list><score-part id="P1"><part-name>Voice</part-name></score-part></part-list><part id="P1">
<measure number="1"><attributes><divisions>1</divisions><time><beats>4</beats><beat-type>4</beat-type></time>
<clef><sign>G</sign><line>2</line></clef></attributes>{}</measure></part></score-partwise>"""
