"""Texts for training the small model: no leftovers, every language complete, deterministic, varied."""

import itertools
import json
import random
import re

import pytest

from recipes.mini import facts as piece_facts
from recipes.mini import texts
from recipes.mini.facts import Facts

KINDS = ("air", "jig", "reel", "hornpipe", "march", "strathspey", "slip jig")
MODES = ("major", "minor", "dorian", "mixolydian", "phrygian", "lydian")
METRES = ("2/2", "2/4", "3/4", "4/4", "3/8", "6/8", "9/8", "12/8", "5/4")
LEFTOVER = re.compile(r"[{}<>\[\]|]|None|  |^\s|\s$|\s[,.。，、]")
JIG = Facts(
    title="Garrett Barry's",
    kind="jig",
    tonic="D",
    mode="mixolydian",
    metre="6/8",
    tempo="lively",
    origin="Irish",
    collection="O'Neill's Music of Ireland",
)
SONG = Facts(
    title="Schwanenlied",
    kind="song",
    tonic="Bb",
    mode="minor",
    metre="3/4",
    tempo="slow",
    mood="plaintive",
    composer="Fanny Hensel",
    born=1805,
    origin="German",
    collection="OpenScore Lieder",
    instruments=("voice", "piano"),
    song_language="German",
)


@pytest.fixture(params=texts.LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return request.param


def test_every_kind_mode_metre_and_origin_is_described_without_leftovers(language: str) -> None:
    lexicon = texts.load_lexicon(language)
    rng = random.Random(0)
    kinds = itertools.cycle([*lexicon["noun"], "whirligig", None])
    origins = itertools.cycle([*lexicon["origin"], "Martian", None])
    tempos = itertools.cycle([*lexicon["tempo"], None])
    tonics = itertools.cycle(f"{letter}{sign}" for letter in "ABCDEFG" for sign in ("", "#", "b"))
    ensembles = itertools.cycle([(), ("voice", "piano"), ("choir",), ("flute", "violin", "violin", "theremin")])
    for _, mode, metre in itertools.product(range(5), MODES, METRES):
        facts = Facts(
            title="Jig (2nd)",
            kind=next(kinds),
            tonic=next(tonics),
            mode=mode,
            metre=metre,
            tempo=next(tempos),
            composer="Anon",
            born=rng.choice((None, 1330, 1567, 1685, 1797, 1870)),
            origin=next(origins),
            instruments=next(ensembles),
            song_language=rng.choice((None, "French", "Klingon")),
        )
        lines = texts.describe(facts, language, rng)
        assert len(set(lines)) == len(lines) == texts.LINE_COUNT
        for line in [*lines, texts.caption(facts, language)]:
            assert line and not LEFTOVER.search(line), line


def test_every_template_parses(language: str) -> None:
    lexicon = json.loads((texts.LEXICON_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    tables = [table for table in lexicon.values() if isinstance(table, dict)]
    forms = len(lexicon["genders"])
    for entry in itertools.chain.from_iterable(table.values() for table in tables):
        for template in [entry] if isinstance(entry, str) else entry:
            assert texts.parse(template)
            for agreement in re.findall(r"<([^>]*)>", template):
                assert len(agreement.split("/")) in (forms, 2 * (forms == 2)), template


def test_languages_have_the_same_terms(language: str) -> None:
    english, lexicon = texts.load_lexicon("en"), texts.load_lexicon(language)
    for table in (
        "key",
        "mode",
        "metre",
        "tempo",
        "adj",
        "origin",
        "epoch",
        "use",
        "noun",
        "land",
        "ensemble",
    ):
        assert set(lexicon[table]) == set(english[table]), table


def test_nouns_have_a_gender(language: str) -> None:
    lexicon = texts.load_lexicon(language)
    if lexicon["genders"]:
        for entry in [*lexicon["noun"].values(), *lexicon["general_noun"].values()]:
            assert all(re.match(f"[{lexicon['genders']}] ", noun) for noun in entry.split("|")), entry


def test_unbalanced_template_is_refused() -> None:
    with pytest.raises(ValueError, match="unbalanced"):
        texts.parse("a {noun}] in {key}")


def test_caption_is_the_same_each_time_and_names_neither_title_nor_composer(language: str) -> None:
    caption = texts.caption(SONG, language)
    assert caption == texts.caption(SONG, language)
    assert "Schwanenlied" not in caption
    assert "Hensel" not in caption
    assert SONG.collection in caption


def test_captions_are_natural() -> None:
    assert texts.caption(JIG, "en") == (
        "An Irish jig in D mixolydian in 6/8 time, at a lively pace, from O'Neill's Music of Ireland."
    )
    assert texts.caption(Facts(kind="reel", tonic="B", mode="minor", origin="Scottish"), "de") == (
        "Ein schottischer Reel in h-Moll."
    )
    assert texts.caption(Facts(kind="jig", tonic="Bb", mode="major", metre="6/8"), "fr") == (
        "Une gigue en si bémol majeur à six-huit."
    )
    assert texts.caption(Facts(kind="jig", tonic="F#", mode="minor", origin="Irish"), "es") == (
        "Una giga irlandesa en fa sostenido menor."
    )
    assert texts.caption(Facts(kind="air", mood="plaintive", tonic="E", mode="minor"), "it") == (
        "Un'aria triste in mi minore."
    )
    assert texts.caption(Facts(kind="jig", tonic="Bb", mode="minor", origin="Irish"), "zh") == (
        "一首爱尔兰吉格舞曲，降B小调。"
    )
    assert texts.caption(Facts(kind="reel", tonic="Bb", mode="major", origin="Irish"), "ja") == (
        "アイルランドのリール、変ロ長調。"
    )


def test_descriptions_vary_and_depend_on_the_generator_alone(language: str) -> None:
    lines = [line for seed in range(150) for line in texts.describe(JIG, language, random.Random(seed))][:300]
    assert len(lines) == 300
    assert len(set(lines)) > 200
    assert lines[:2] == texts.describe(JIG, language, random.Random(0))


def test_unknown_facts_never_appear(language: str) -> None:
    facts = Facts(mode="minor")
    lines = [line for seed in range(20) for line in texts.describe(facts, language, random.Random(seed))]
    other_modes = [texts.load_lexicon(language)["mode"][mode].split("|")[0] for mode in ("dorian", "lydian")]
    assert not any(mode in line for line in lines for mode in other_modes)
    assert texts.describe(Facts(), language, random.Random(0))


def test_title_and_composer_are_in_a_good_part_of_the_lines_once(language: str) -> None:
    lines = [line for seed in range(60) for line in texts.describe(SONG, language, random.Random(seed))]
    for name in ("schwanenlied", "fanny hensel"):
        counts = [line.lower().count(name) for line in lines]
        assert max(counts) == 1
        assert 0.1 < sum(counts) / len(counts) < 0.5


@pytest.mark.parametrize(
    ("facts", "supported", "unsupported"),
    [
        (Facts(kind="reel", mode="major"), {"lively", "cheerful"}, {"sad", "slow", "dark"}),
        (Facts(kind="air", mode="minor", tempo="slow"), {"sad", "slow"}, {"cheerful", "fast"}),
        (Facts(kind="march", mode="major"), {"martial", "proud"}, {"sad"}),
        (Facts(kind="jig", mode="minor", tempo="slow"), {"slow", "sad"}, {"lively", "bouncy"}),
        (Facts(mode="minor"), set(), {"sad"}),
        (Facts(kind="string quartet", mode="minor"), {"dark"}, {"sad"}),
        (Facts(kind="reel", mood="plaintive", mode="major"), {"sad"}, {"slow"}),
    ],
)
def test_moods_follow_from_the_facts(facts: Facts, supported: set[str], unsupported: set[str]) -> None:
    moods = set(piece_facts.moods(facts))
    assert supported <= moods
    assert not unsupported & moods


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("kind", KINDS),
        ("mode", MODES),
        ("metre", METRES),
        ("song_language", ("German", "French", "English")),
        ("origin", ("Irish", "Scottish", "English", "American", "Northumbrian", "German")),
        ("ensemble", ("song", "string quartet")),
    ],
)
def test_prompts_are_several_distinct_and_fixed(field: str, values: tuple[str, ...], language: str) -> None:
    for value in values:
        prompts = texts.prompts(field, value, language)
        assert len(set(prompts)) == len(prompts) >= 6
        assert prompts == texts.prompts(field, value, language)
        assert not any(LEFTOVER.search(prompt) for prompt in prompts)


def test_unknown_language_and_field_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one of en, de"):
        texts.caption(JIG, "tlh")
    with pytest.raises(ValueError, match="expected kind"):
        texts.prompts("color", "blue", "en")


@pytest.mark.parametrize(
    ("born", "name", "century"), [(1330, "medieval", "14"), (1685, "baroque", "18"), (1797, "romantic", "19")]
)
def test_birth_places_a_composer_in_time(born: int, name: str, century: str) -> None:
    facts = Facts(born=born)
    assert piece_facts.epoch(facts) == name
    assert str(piece_facts.prime_year(facts) // 100 + 1) == century
