"""The pieces that `mini` is trained on and judged by, with the facts that their own metadata states.

There are three sources, all read in place: the corpus inside music21, a folder of OpenScore songs and string quartets
(CC0, github.com/OpenScore/Lieder and github.com/OpenScore/StringQuartets) with its index.tsv, and a folder of OpenEWLD
lead sheets (public domain, github.com/00sapo/OpenEWLD) with its index.tsv. Palestrina, Josquin and every score with a
rights notice are left out. Essen is left out unless it is asked for (license: non-commercial use).
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import music21

from clamplib.formats.notation import split_tunes
from clamplib.formats.notes import KEY
from clamplib.formats.score_files import score_to_musicxml
from recipes.mini.texts import Facts

CORPUS = Path(music21.__file__).parent / "corpus"
ESSEN = "Essen Folksong Collection"
OPENEWLD = "OpenEWLD"
DECLARATION = '<?xml version="1.0" encoding="UTF-8"?>'
KINDS = ("air", "jig", "reel", "hornpipe", "march", "strathspey", "slip jig")

# O'Neill's Music of Ireland (1903) is ordered by kind; these are the last number and the kind of each part
ONEILL_PARTS = (
    (625, "air"),
    (700, "harp tune"),
    (1115, "jig"),
    (1175, "slip jig"),
    (1555, "reel"),
    (1780, "hornpipe"),
    (1799, "set dance"),
    (1850, "march"),
)
KIND_BY_RHYTHM = {
    "double jig": "jig",
    "single jig": "jig",
    "slide": "jig",
    "slipjig": "slip jig",
    "hop jig": "slip jig",
    "highland fling": "fling",
}
KIND_BY_TITLE = (  # Aird and the minstrelsies state the kind in the title, if at all
    (r"strathsp?e?y|strathsy", "strathspey"),
    (r"\breel|\brant\b", "reel"),
    (r"\bslip jig|\bhop jig", "slip jig"),
    (r"\bjig|\bgigg?", "jig"),
    (r"quick ?step", "quickstep"),
    (r"\bmarch", "march"),
    (r"hornpipe", "hornpipe"),
    (r"\bminuet", "minuet"),
    (r"\bgavott?", "gavotte"),
    (r"\ballemand", "allemande"),
    (r"\bwaltz|\bvalse", "waltz"),
    (r"\bpolka", "polka"),
    (r"\bair\b|\bsong\b|\blament", "air"),
)
TEMPO_WORDS = (
    (r"very slow|grave|largo|sehr langsam|tr[eè]s lent|lento", "very slow"),
    (r"slow|adagio|langsam|lent|larghetto|tender|plaintive|feierlich", "slow"),
    (r"moderat|andant|mäßig|massig|mässig|modéré", "moderate"),
    (r"presto|fast|sehr schnell|très vite|quick|vivac|schnell|vite", "fast"),
    (r"allegr|lively|animat|spirit|gai|cheer|lebhaft|bewegt|merr|play", "lively"),
)
MOOD_WORDS = (
    (r"plaintiv|sad|mourn|klagend|traurig|lament", "plaintive"),
    (r"tender|innig|zart|feeling|affett|expression|dolce", "tender"),
    (r"spirit|animat", "spirited"),
    (r"bold|energ|kräftig", "bold"),
    (r"cheer|gai|merr|allegr|heiter|fröhlich", "cheerful"),
    (r"play|scherz", "playful"),
    (r"majest|maest|feierlich|grave", "majestic"),
)
MODES = {"": "major", "maj": "major", "m": "minor", "min": "minor", "aeo": "minor", "ion": "major"}
MODES |= {"dor": "dorian", "mix": "mixolydian", "phr": "phrygian", "lyd": "lydian"}
METRES = {"C": "4/4", "C|": "2/2"}
STOPWORDS = {
    "German": set("der die das und ich nicht ist du mir dich mein ein den so wie zu auf mit im dem".split()),
    "French": set("le la les et je tu de des un que dans ma mon il est pas en mes qui du l' vous".split()),
    "English": set("the and of to my thy is in i thou with that for my on thee not from all his".split()),
    "Italian": set("il che non di mio per un del con mi tu se è più o cor nel ti al io".split()),
}
SCORE_FOLDERS = {  # folder of music21's corpus: composer, born, kind, origin, instruments
    "bach": ("Johann Sebastian Bach", 1685, "chorale", "German", ("choir",)),
    "beethoven": ("Ludwig van Beethoven", 1770, "string quartet", "German", ()),
    "haydn": ("Joseph Haydn", 1732, "string quartet", "Austrian", ()),
    "mozart": ("Wolfgang Amadeus Mozart", 1756, "string quartet", "Austrian", ()),
    "monteverdi": ("Claudio Monteverdi", 1567, "madrigal", "Italian", ("choir",)),
    "trecento": (None, None, "ballata", "Italian", ()),
    "schumann_clara": ("Clara Schumann", 1819, None, "German", ()),
    "schumann_robert": ("Robert Schumann", 1810, "song", "German", ("voice", "piano")),
    "joplin": ("Scott Joplin", 1868, "rag", "American", ("piano",)),
}


@dataclass(frozen=True)
class CorpusPiece:
    """One tune or score of the corpora. A tune has its text in `abc`, a score has its file in `score`."""

    id: str
    facts: Facts
    abc: str | None = None
    score: Path | None = None


def corpus_pieces(
    openscore: Path | None = None, openewld: Path | None = None, essen: bool = False
) -> Iterator[CorpusPiece]:
    """Yields every piece of the corpora, in a fixed order."""
    for folder, collection, origin in (
        ("oneills1850", "O'Neill's Music of Ireland", "Irish"),
        ("ryansMammoth", "Ryan's Mammoth Collection", "American"),
        ("airdsAirs", "Aird's Airs", "Scottish"),
        ("miscFolk", None, None),
        ("nottingham-dataset", "Nottingham Music Database", "English"),
    ):
        yield from _tunes(folder, collection, origin)
    if essen:
        yield from _tunes("essenFolksong", ESSEN, None)
    yield from _scores()
    if openscore is not None:
        yield from _openscore(openscore)
    if openewld is not None:
        yield from _openewld(openewld)


def _tunes(folder: str, collection: str | None, origin: str | None) -> Iterator[CorpusPiece]:
    for path in sorted((CORPUS / folder).glob("*.abc")):
        for number, abc in enumerate(split_tunes(path.read_text("utf-8", errors="replace")), 1):
            facts = _tune_facts(abc, folder, collection, origin, path.stem)
            yield CorpusPiece(f"{folder}/{path.stem}-{number:03d}", facts, abc=abc)


def _tune_facts(abc: str, folder: str, collection: str | None, origin: str | None, stem: str) -> Facts:
    title = _field(abc, "T")
    tonic, mode = read_key(_field(abc, "K") or "")
    metre = (_field(abc, "M") or "").strip()
    words = " ".join(re.findall(r"(?m)^N: *(.*)", abc))
    words = re.sub(r"(?i)collected.*", "", words)
    composer = _field(abc, "C") or ""
    if folder == "miscFolk":
        northumbrian = stem.startswith("northumbrian")
        collection = "Northumbrian Minstrelsy" if northumbrian else "The American Veteran Fifer"
        collection, origin = (collection, "Northumbrian") if northumbrian else (None, "American")
    if folder == "essenFolksong":
        origin = _essen_origin(_field(abc, "O") or "")
    if re.match(r"(?i)irish", composer) or re.search(r"(?i)\birish", title or ""):
        origin = "Irish"
    kind = _tune_kind(abc, folder, title or "")
    return Facts(
        title=_tidy_title(title),
        kind="slip jig" if kind == "jig" and metre == "9/8" else kind,
        tonic=tonic,
        mode=mode,
        metre=METRES.get(metre, metre if re.fullmatch(r"\d+/\d+", metre) else None),
        tempo=_first_match(TEMPO_WORDS, words),
        mood=_first_match(MOOD_WORDS, words),
        composer="Turlough O'Carolan" if "carolan" in composer.lower() else None,
        born=None,
        origin=origin,
        collection=collection,
        instruments=(),
        song_language=None,
    )


def _tune_kind(abc: str, folder: str, title: str) -> str | None:
    rhythm = (_field(abc, "R") or "").strip().lower()
    if rhythm:
        return KIND_BY_RHYTHM.get(rhythm, rhythm if folder != "essenFolksong" else None)
    if folder == "oneills1850":
        number = int(re.match(r"X: *(\d+)", abc[abc.index("X:") :])[1])
        return next(kind for last, kind in ONEILL_PARTS if number <= last)
    return _first_match(KIND_BY_TITLE, title)


def _essen_origin(place: str) -> str | None:
    for name, origin in (
        ("China", "Chinese"),
        ("Deutschland", "German"),
        ("Nederland", "Dutch"),
        ("Frankreich", "French"),
        ("Oesterreich", "Austrian"),
        ("Polska", "Polish"),
        ("Sverige", "Swedish"),
    ):
        if name in place:
            return origin
    return "German" if "Europa, Mitteleuropa" in place else None


def _scores() -> Iterator[CorpusPiece]:
    for folder, (composer, born, kind, origin, instruments) in SCORE_FOLDERS.items():
        found = [path for path in sorted((CORPUS / folder).rglob("*")) if path.suffix in (".mxl", ".xml", ".musicxml")]
        for path in {path.with_suffix(""): path for path in found}.values():  # one score exists in two formats
            xml = read_musicxml(path)
            if _rights_reserved(xml):
                continue
            who = composer or _composer(xml)
            voices = ("violin", "violin", "viola", "cello") if kind == "string quartet" else instruments
            facts = score_facts(xml, path.stem, kind, who, born, origin, None, voices)
            name = path.relative_to(CORPUS).with_suffix("").as_posix()
            yield CorpusPiece(name, facts, score=path)


def _openscore(folder: Path) -> Iterator[CorpusPiece]:
    for row in _index_rows(folder, "OpenScore scores"):
        quartet = row["file"].startswith("quartets")
        path = folder / row["file"]
        origin = (row["composer_description"] or "").split(" ")[0]
        facts = score_facts(
            read_musicxml(path),
            re.sub(r"^\d+ ", "", row["title"]),
            "string quartet" if quartet else "song",
            row["composer"] or None,
            int(row["born"]) if row["born"].isdigit() else None,
            origin if origin.istitle() else None,
            "OpenScore String Quartets" if quartet else "OpenScore Lieder",
            ("violin", "violin", "viola", "cello") if quartet else ("voice", "piano"),
        )
        yield CorpusPiece(f"openscore/{path.stem}", facts, score=path)


def _openewld(folder: Path) -> Iterator[CorpusPiece]:
    for row in _index_rows(folder, "OpenEWLD lead sheets"):
        path = folder / "scores" / row["file"]
        facts = score_facts(read_musicxml(path), row["title"], "song", None, None, None, OPENEWLD, ())
        waltz = facts.metre == "3/4"  # popular songs in 3/4 of these years are waltzes
        composer = row["authors"] if not row["authors"].startswith("[") else None
        facts = replace(facts, kind="waltz" if waltz else "song", composer=composer or None)
        yield CorpusPiece(f"openewld/{path.stem}", facts, score=path)


def _index_rows(folder: Path, content: str) -> list[dict[str, str]]:
    index = folder / "index.tsv"
    if not index.is_file():
        raise FileNotFoundError(f"{index}: not found; expected the folder of {content} with its index.tsv")
    with index.open(encoding="utf-8", newline="") as lines:
        return sorted(csv.DictReader(lines, delimiter="\t"), key=lambda row: row["file"])


def score_facts(xml, title, kind, composer, born, origin, collection, instruments) -> Facts:
    """Returns the facts of a score. `with_key` adds key and mode later, from the notes."""
    head = re.search(r"<movement-title>([^<]+)|<work-title>([^<]+)", xml)
    if collection is None and head:
        title = head[1] or head[2]
    words = " ".join(re.findall(r"<words[^>]*>([^<]+)", xml)[:3])
    beats = re.search(r"<beats>(\d+)</beats>\s*<beat-type>(\d+)", xml)
    return Facts(
        title=_tidy_title(title),
        kind=kind,
        tonic=None,
        mode=None,
        metre=f"{beats[1]}/{beats[2]}" if beats else None,
        tempo=_first_match(TEMPO_WORDS, words),
        mood=_first_match(MOOD_WORDS, words),
        composer=composer,
        born=born,
        origin=origin,
        collection=collection,
        instruments=instruments,
        song_language=sung_language(xml) if kind == "song" else None,
    )


def read_musicxml(path: Path) -> str:
    """Returns the text of a .mxl, .xml or .musicxml file, with a declaration that says UTF-8."""
    (data,) = score_to_musicxml(path)
    xml = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", errors="replace")
    return DECLARATION + re.sub(r"^\s*<\?xml[^>]*\?>", "", xml)


def with_key(facts: Facts, key_field: str, final_bass: int | None) -> Facts:
    """Adds tonic and mode from the ABC key. A score that states no mode is minor if it ends on the minor tonic."""
    if facts.tonic is not None:
        return facts
    tonic, mode = read_key(key_field)
    if tonic is None:
        return facts
    if mode == "major" and final_bass is not None:
        fifths = "Cb Gb Db Ab Eb Bb F C G D A E B F# C#".split().index(tonic) - 7
        if final_bass % 12 == (9 + 7 * fifths) % 12:
            tonic, mode = "Ab Eb Bb F C G D A E B F# C# G# D# A#".split()[fifths + 7], "minor"
    return replace(facts, tonic=tonic, mode=mode)


def read_key(field: str) -> tuple[str | None, str | None]:
    """Returns tonic and mode of an ABC K: field, or None for both if it names none."""
    match = KEY.match(field)
    if not match:
        return None, None
    letter, accidental, mode = match.groups()
    return letter + accidental, MODES.get(mode[:3].lower(), "major")


def sung_language(xml: str) -> str | None:
    """Returns the language of a song's lyrics, by common short words, or None if there are too few of them."""
    words = Counter()
    for syllable in re.findall(r"<text[^>]*>([^<]*)</text>", xml):
        words[re.sub(r"[^\w'è]", "", syllable.lower())] += 1
    counts = {}
    for language, stopwords in STOPWORDS.items():
        counts[language] = sum(words[word] for word in stopwords)
    best, second = sorted(counts, key=counts.get, reverse=True)[:2]
    return best if counts[best] >= 5 and counts[best] > 1.3 * counts[second] else None


def _rights_reserved(xml: str) -> bool:
    notices = re.findall(r"<rights[^>]*>([^<]*)", xml)
    notices += re.findall(r"(?i)<credit-words[^>]*>([^<]*(?:copyright|\(c\)|©|rights)[^<]*)", xml)
    return any(not re.search(r"(?i)CC0|public domain", notice) for notice in notices)


def _composer(xml: str) -> str | None:
    match = re.search(r'<creator type="composer">([^<]+)', xml)
    return match[1].strip() if match and "nonym" not in match[1] else None


def _field(abc: str, letter: str) -> str | None:
    match = re.search(rf"(?m)^{letter}: *(.*?)\s*(?:%.*)?$", abc)
    return match[1] if match and match[1] else None


def _tidy_title(title: str | None) -> str | None:
    """Turns "Rakes of Mallow, The -- Reel" into "The Rakes of Mallow"."""
    if not title:
        return None
    title = re.sub(r"\s+--.*|\s*\(.*\)\s*$", "", title).strip().rstrip(".,")
    match = re.fullmatch(r"(.*), (The|A|An)", title)
    return f"{match[2]} {match[1]}" if match else title or None


def _first_match(table: tuple[tuple[str, str], ...], text: str) -> str | None:
    return next((value for pattern, value in table if re.search(pattern, text, re.IGNORECASE)), None)
