"""Texts about music: descriptions, captions and class prompts, made from a piece's facts in seven languages.

The words of a language are in `lexicon/<language>.json`: tables of terms (kinds of tune, keys, meters, moods, …) and
rules (sentence shapes). Every entry is a template:

    a|b        one of the alternatives (those that need an unknown fact are skipped)
    (a|b)      the same inside a longer text
    [ in {x}]  left out when it needs an unknown fact; without a slot, left out half of the time
    {x}        a fact, a term for it or another rule; {X} capitalized; {x:f} feminine, whatever the noun
    <a/b>      the form that agrees with the line's noun, in the order of the language's `genders`

A fact appears at most once in a line: a slot whose fact was already used counts as unknown. In languages with genders,
nouns start with their gender ("f gigue"). The first alternative of every entry is the plainest; captions use only
first alternatives.
"""

import dataclasses
import functools
import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

from recipes.mini.facts import GROUP_OF, Facts, epoch, moods, prime_year, stated_moods

LANGUAGES = ("en", "de", "fr", "es", "it", "zh", "ja")
LEXICON_FOLDER = Path(__file__).parent / "lexicon"

TITLE_SHARE = 0.3  # share of a description's lines that may name the title, and that may name the composer
KEEP_SHARES = (0.4, 0.6, 0.8, 1.0, 1.0)  # of the other facts; one share is drawn per line
LOWER_CASE_SHARE = 0.2  # lines that are typed without capitals
KEYWORD_SHARE = 0.2  # lines that are keywords
CAPTION_SHARE = 0.15  # lines that have the shape of the caption
STOP_SHARE = 0.6  # sentences that end in a full stop
LINE_COUNT = 2  # lines per description: people ask in one line, and training joins half of the lines it has
PROMPT_COUNT = 16
MAX_ATTEMPTS = 20  # draws per line, until one is new and says something
SELF_SCORED = {"string quartet", "piano piece"}  # kinds that already name the instruments

FIELDS = tuple(field.name for field in dataclasses.fields(Facts))
SLOT_FIELDS = {  # the facts that a slot uses, where it is not the fact of the same name
    "noun": ("kind",),
    "nouns": ("kind",),
    "key": ("mode", "tonic"),
    "land": ("origin",),
    "tongue": ("song_language",),
    "forces": ("instruments",),
    "count": ("bars",),
    "year": ("born",),
    "epoch": ("born",),
    "century": ("born",),
}


class FirstChoice:
    """Replaces random.Random where a text should be the plainest one."""

    def sample(self, options: Sequence, k: int) -> Sequence:
        return options

    def random(self) -> float:
        return 1.0


@functools.cache
def load_lexicon(language: str) -> dict:
    """Loads the tables of one language, and its rules as `parse` returns them.

    Raises:
        ValueError: the language is not one of LANGUAGES.
    """
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r}: expected one of {', '.join(LANGUAGES)}")
    lexicon = json.loads((LEXICON_FOLDER / f"{language}.json").read_text(encoding="utf-8"))
    lexicon["rules"] = {name: parse("|".join(shapes)) for name, shapes in lexicon["rules"].items()}
    return lexicon


@functools.cache
def parse(template: str) -> list[list]:
    """Parses a template into alternatives, each a list of nodes: a str or a (type, content) tuple."""
    tokens = re.findall(r"[\[\](|)]|\{[^}]*\}|<[^>]*>|[^\[\](|){<]+", template)
    alternatives = _alternatives(tokens)
    if tokens:
        raise ValueError(f"template {template!r}: unbalanced {tokens[0]!r}")
    return alternatives


def _alternatives(tokens: list[str]) -> list[list]:
    """Consumes tokens up to the bracket that closes this level."""
    alternatives: list[list] = [[]]
    while tokens and tokens[0] not in ")]":
        token = tokens.pop(0)
        if token == "|":
            alternatives.append([])
        elif token in "([":
            alternatives[-1].append(("choice" if token == "(" else "option", _alternatives(tokens)))
            tokens.pop(0)
        elif token[0] == "{":
            alternatives[-1].append(("slot", token[1:-1]))
        elif token[0] == "<":
            alternatives[-1].append(("agree", token[1:-1].split("/")))
        else:
            alternatives[-1].append(token)
    return alternatives


class Line:
    """A line of text being written: which facts it may use, which it has used, and its noun."""

    def __init__(self, facts: Facts, fields: set[str], mood_pool: list[str], lexicon: dict, rng) -> None:
        self.facts, self.lexicon, self.rng = facts, lexicon, rng
        self.fields = {field for field in fields if getattr(facts, field)}
        self.used = {"instruments"} if "kind" in self.fields and facts.kind in SELF_SCORED else set()
        known = [mood for mood in mood_pool if mood in lexicon["adj"]]
        self.moods = dict(zip(("adj", "adj2"), rng.sample(known, min(2, len(known))), strict=False))
        self.gender = lexicon["genders"][:1]
        self.noun = self._noun("noun")
        if lexicon["genders"]:
            self.gender, _, self.noun = self.noun.partition(" ")

    def write(self, rule: str) -> str | None:
        """Returns the text of a rule without runs of blanks, or None if its facts are unknown."""
        text = self.choice(self.lexicon["rules"][rule])
        if text is None:
            return None
        for pattern, replacement in self.lexicon["fixes"]:
            text = re.sub(pattern, replacement, text)
        return re.sub(r" (?=[,.])", "", re.sub(r"\s+", " ", text)).strip(" ,")

    def choice(self, alternatives: list[list]) -> str | None:
        for alternative in self.rng.sample(alternatives, len(alternatives)):
            used = set(self.used)
            text = self._sequence(alternative)
            if text is not None:
                return text
            self.used = used
        return None

    def _sequence(self, nodes: list) -> str | None:
        parts = []
        for node in nodes:
            part = node if isinstance(node, str) else self._node(*node)
            if part is None:
                return None
            parts.append(part)
        return "".join(parts)

    def _node(self, node_type: str, content) -> str | None:
        if node_type == "choice":
            return self.choice(content)
        if node_type == "agree":
            return content[self.lexicon["genders"].index(self.gender)]
        if node_type == "slot":
            return self._slot(content)
        plain = all(isinstance(node, str) for nodes in content for node in nodes)
        return "" if plain and self.rng.random() >= 0.5 else self.choice(content) or ""

    def _slot(self, slot: str) -> str | None:
        name, _, gender = slot.partition(":")
        gender_before, self.gender = self.gender, gender or self.gender
        text = self._value(name.lower())
        self.gender = gender_before
        return text[0].upper() + text[1:] if text and name[0].isupper() else text

    def _value(self, name: str) -> str | None:
        """Returns the text of a slot and marks its facts as used, or None if they are unknown or already used."""
        if name in self.lexicon["rules"]:
            return self.choice(self.lexicon["rules"][name])
        if name == "tonic":
            return self._tonic()
        if name in ("letter", "sig"):  # the facts as they are, inside a term
            return self.facts.tonic if name == "letter" else self.facts.metre
        fields = SLOT_FIELDS.get(name, (name,))
        if name == "origin" and "origin" not in self.fields:
            fields = ("song_language",)  # "a German song"
        if self.used.intersection(fields):
            return None
        text = self.noun if name == "noun" else self._term(name, fields)
        if text is not None and (fields != ("kind",) or "kind" in self.fields):
            self.used.update(fields)
        return text

    def _term(self, name: str, fields: tuple[str, ...]) -> str | None:
        if name in ("adj", "adj2"):
            return self._lookup("adj", self.moods[name]) if name in self.moods else None
        if name == "use":
            return self._lookup("use", GROUP_OF.get(self.facts.kind), fall_back=False)
        if name == "nouns":
            return self._noun("nouns")
        if not self.fields.issuperset(fields):
            return None
        if name == "forces":
            return self._forces()
        if name in ("title", "composer", "collection"):
            return getattr(self.facts, name)
        if name == "count":
            return str(self.facts.bars)
        if name in ("year", "epoch", "century"):
            return self._time(name)
        return self._lookup(name, str(getattr(self.facts, fields[0])), name not in ("origin", "land"))

    def _lookup(self, table: str, key: str | None, fall_back: bool = True) -> str | None:
        """Returns the term for a key. Unknown keys give the table's pattern "*", or the (English) key itself."""
        terms = self.lexicon[table]
        if key in terms:
            return self.choice(parse(terms[key]))
        if not fall_back:
            return None
        return self.choice(parse(terms["*"])) if "*" in terms else key

    def _noun(self, table: str) -> str | None:
        """Returns the noun for the kind, or a general one if the kind is unknown, after its gender."""
        if "kind" in self.fields:
            if table == "nouns" or self.facts.kind in self.lexicon[table]:
                return self._lookup(table, self.facts.kind, fall_back=False)
            return f"{self.lexicon['genders'][:1]} {self.facts.kind}".strip()
        general = self.lexicon["general_" + table]
        group = GROUP_OF.get(self.facts.kind, "any")
        options = general["any"] + ("|" + general[group] if group in general else "")
        return self.choice(parse(options))

    def _tonic(self) -> str:
        terms, tonic = self.lexicon["tonic"], self.facts.tonic
        if tonic not in terms:
            tonic, accidental = tonic[0], tonic[1:]
            pattern = terms.get(accidental, "{base}" + accidental)
            return self.choice(parse(pattern.replace("{base}", terms.get(tonic, tonic))))
        return terms[tonic]

    def _forces(self) -> str | None:
        names = self.facts.instruments
        if ", ".join(names) in self.lexicon["ensemble"]:
            return self._lookup("ensemble", ", ".join(names))
        words = [self._lookup("instrument", name) for name in dict.fromkeys(names)]
        head, last = self.lexicon["comma"].join(words[:-1]), words[-1]
        return head + self.lexicon["and"] + last if head else last

    def _time(self, name: str) -> str | None:
        if name == "year":
            return str(self.facts.born)
        if name == "century":
            return self._lookup("century", str(prime_year(self.facts) // 100 + 1), fall_back=False)
        return self._lookup("epoch", epoch(self.facts))


def _kept_fields(facts: Facts, rng: random.Random) -> set[str]:
    """Draws the facts that one line may use: at least two, often all; title and composer seldom."""
    named = [field for field in ("title", "composer") if rng.random() < TITLE_SHARE]
    others = [field for field in FIELDS if field not in ("title", "composer") and getattr(facts, field)]
    count = max(min(2, len(others)), round(rng.choice(KEEP_SHARES) * len(others)))
    kept = set(rng.sample(others, count) + named)
    return kept if "mode" in kept else kept - {"tonic"}  # a tonic alone would read as a major key


def _typed(text: str, keywords: bool, lexicon: dict, rng: random.Random) -> str:
    """Adds capitals and a full stop most of the time, as people do."""
    if keywords:
        return text.lower() if rng.random() < 0.5 else text
    if rng.random() < LOWER_CASE_SHARE:
        return text.lower()
    stop = lexicon["stop"] if text[-1].isalnum() and rng.random() < STOP_SHARE else ""
    return text[0].upper() + text[1:] + stop


def _draw(facts: Facts, lexicon: dict, rng: random.Random, said: frozenset[str]) -> str | None:
    """Draws one line that says something and uses the fields in `said`, or returns None if no draw did."""
    for _ in range(MAX_ATTEMPTS):
        line = Line(facts, _kept_fields(facts, rng), moods(facts), lexicon, rng)
        implied = set(line.used)
        shares = (KEYWORD_SHARE, CAPTION_SHARE, 1 - KEYWORD_SHARE - CAPTION_SHARE)
        shape = rng.choices(("keywords", "caption", "lines"), shares)[0]
        if line.fields & {"title", "composer"}:
            shape = "named"
        text = line.write(shape)
        if text and line.used - implied and said <= line.used:
            return _typed(text, shape == "keywords", lexicon, rng)
    return None if said else line.write("np")


def _distinct(facts: Facts, lexicon: dict, rng: random.Random, count: int, said=frozenset()) -> list[str]:
    """Returns up to `count` different lines, each of which uses the fields in `said`."""
    lines: dict[str, None] = {}
    for _ in range(count * MAX_ATTEMPTS):
        lines[_draw(facts, lexicon, rng, said)] = None
        if len(lines) - (None in lines) == count:
            break
    return [line for line in lines if line]


def describe(facts: Facts, language: str, rng: random.Random) -> list[str]:
    """Returns lines for training: sentences, questions, phrases and keywords about random facts."""
    return _distinct(facts, load_lexicon(language), rng, LINE_COUNT)


def caption(facts: Facts, language: str) -> str:
    """Returns the plain sentence for evaluation, with every fact but the title and the composer."""
    lexicon = load_lexicon(language)
    fields = set(FIELDS) - {"title", "composer"}
    pool = stated_moods(facts) if facts.mood else []
    text = Line(facts, fields, pool, lexicon, FirstChoice()).write("caption")
    return text[0].upper() + text[1:] + lexicon["stop"]


def prompts(field: str, value: str, language: str) -> list[str]:
    """Returns paraphrases of one class for zero-shot classification, to be averaged.

    Args:
        field: "kind", "mode", "metre", "song_language", "origin" or "ensemble".
        value: as in Facts; for "ensemble", "song" or "string quartet".

    Raises:
        ValueError: the field is not one of these.
    """
    if field not in ("kind", "mode", "metre", "song_language", "origin", "ensemble"):
        raise ValueError(f"field {field!r}: expected kind, mode, metre, song_language, origin or ensemble")
    facts = Facts(**{"kind" if field == "ensemble" else field: value})
    if field == "ensemble" and value == "song":
        facts = Facts(kind="song", instruments=("voice", "piano"))
    if field == "song_language":
        facts = Facts(kind="song", song_language=value)
    rng = random.Random(f"{field} {value} {language}")
    said = frozenset({"kind" if field == "ensemble" else field})
    return _distinct(facts, load_lexicon(language), rng, PROMPT_COUNT, said)
