"""The facts of a piece, and what follows from them: its group, its moods, its epoch."""

from dataclasses import dataclass

GROUPS = {  # what kinds of piece are for; a group selects the general noun ("dance tune") and the use ("to dance to")
    "dance": "jig,slip jig,single jig,reel,hornpipe,strathspey,polka,clog,fling,set dance,walkaround,rag,"
    "galop,schottische,mazurka,country dance,cotillion,quadrille",
    "ballroom": "waltz,minuet,gavotte,allemande",
    "march": "march,quickstep",
    "melody": "air,harp tune,lament",
    "vocal": "song,madrigal,ballata",
    "church": "chorale,hymn,motet",
    "concert": "string quartet,piano piece,symphony,sonata",
}
GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds.split(",")}
KIND_MOODS = {
    "jig": "lively bouncy fast",
    "single jig": "lively bouncy fast",
    "slip jig": "bouncy lively graceful",
    "reel": "lively fast driving",
    "hornpipe": "playful bouncy lively",
    "strathspey": "snappy proud",
    "polka": "lively bouncy",
    "clog": "playful bouncy",
    "fling": "lively snappy",
    "set dance": "lively",
    "walkaround": "playful lively",
    "rag": "playful lively",
    "galop": "fast lively",
    "waltz": "swaying graceful",
    "minuet": "graceful",
    "gavotte": "graceful",
    "allemande": "graceful",
    "march": "martial proud",
    "quickstep": "martial lively",
    "air": "lyrical",
    "harp tune": "lyrical graceful",
    "lament": "sad slow",
    "song": "lyrical",
    "madrigal": "lyrical",
    "ballata": "lyrical",
    "chorale": "solemn",
    "hymn": "solemn",
    "motet": "solemn",
    "string quartet": "intimate",
}
MOOD_SYNONYMS = {
    "plaintive": "sad",
    "mournful": "sad",
    "melancholy": "sad",
    "spirited": "lively",
    "animated": "lively",
    "brisk": "lively",
    "bold": "proud",
    "merry": "cheerful",
    "gay": "cheerful",
    "gentle": "tender",
    "sweet": "tender",
    "affectionate": "tender",
    "expressive": "lyrical",
    "quiet": "calm",
    "peaceful": "calm",
    "grand": "majestic",
    "stately": "majestic",
    "religious": "solemn",
    "military": "martial",
}
QUICK_MOODS = {"cheerful", "lively", "fast", "bouncy", "driving", "playful"}
SLOW_MOODS = {"slow", "calm", "sad", "tender", "solemn"}
MINOR_MODES = {"minor", "dorian", "phrygian", "aeolian"}
EPOCHS = (
    (1420, "medieval"),
    (1610, "renaissance"),
    (1750, "baroque"),
    (1820, "classical"),
    (1905, "romantic"),
)
PRIME = 35  # the age of a composer in the year that places the music in an epoch and a century


@dataclass(frozen=True)
class Facts:
    """What is known of a piece. None or () means unknown, and never appears in a text."""

    title: str | None = None
    kind: str | None = None  # "jig", "air", "string quartet", ... (the keys of a lexicon's `noun`)
    tonic: str | None = None  # "C", "F#", "Bb"
    mode: str | None = None  # "major", "minor", "dorian", "mixolydian", "phrygian", "lydian"
    metre: str | None = None  # "6/8", "2/2", ...
    bars: int | None = None  # as written, without the upbeat
    tempo: str | None = None  # "very slow", "slow", "moderate", "lively", "fast"
    mood: str | None = None  # "plaintive", "bold", ... (MOOD_SYNONYMS and the keys of a lexicon's `adj`)
    composer: str | None = None
    born: int | None = None  # the composer's year of birth
    origin: str | None = None  # "Irish", "Scottish", "German", ...
    collection: str | None = None
    instruments: tuple[str, ...] = ()
    song_language: str | None = None  # of the sung text: "German", "French", ...


def moods(facts: Facts) -> list[str]:
    """Returns the moods that the facts support, stated ones first."""
    stated = stated_moods(facts)
    group = GROUP_OF.get(facts.kind)
    slow = facts.tempo in ("very slow", "slow") or (facts.kind in ("air", "lament") and facts.tempo is None)
    quick = facts.tempo in ("lively", "fast") or (group == "dance" and not slow and facts.kind != "strathspey")
    minor = facts.mode in MINOR_MODES
    found = KIND_MOODS.get(facts.kind, "").split()
    if slow:
        found += ["slow", "calm"] + ["tender"] * (facts.mode == "major")
    if minor:
        found += ["sad"] * (slow or group in ("melody", "vocal")) + ["dark"] * bool(facts.kind)
    if quick and facts.mode == "major":
        found += ["cheerful"]
    barred = (QUICK_MOODS if slow else set()) | (SLOW_MOODS if quick else set())
    return list(dict.fromkeys(stated + [mood for mood in found if mood not in barred]))


def stated_moods(facts: Facts) -> list[str]:
    """Returns the moods that the metadata state: its mood and its tempo."""
    mood = MOOD_SYNONYMS.get(facts.mood, facts.mood)
    tempo = "slow" if facts.tempo == "very slow" else facts.tempo
    return [word for word in (mood, tempo) if word]


def prime_year(facts: Facts) -> int:
    """Returns the year that places the music in time. The composer's birth must be known."""
    return facts.born + PRIME


def epoch(facts: Facts) -> str:
    """Returns the epoch of music history. The composer's birth must be known."""
    return next((name for end, name in EPOCHS if prime_year(facts) < end), "modern")
