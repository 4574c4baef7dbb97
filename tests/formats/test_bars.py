"""Lengths of bars: counted once per rhythm, against abctoolkit bar by bar."""

import random

import pytest
from abctoolkit.duration import calculate_bartext_duration

from clamplib.formats.bars import bars_differ

BARS = [
    "C8", "z8", "x4 X4", "C2 D2 E2 F2", "CDEF GABc", "C/D/ E/4F/4 G3/2", "[CEG]4 [_B,,^f']-[Bf]4", "(CD) (EF-F)G A2",
    "C>D E<F G>>A C2", "(3CDE F2", "(3:2:4CDE/F/ G", "(5:4:5CDEFG (3(ABc)", '"Am"C2 "^a|b" !^!D2 !fermata!E4',
    "{cd}C4{e}D4", "[K:G]C4 [M:3/4]D2", "[Q:1/4=120] .C u.D TE4", "C3/ D", "C// D", "C/0 D", "C 2", "C2 3", ">C", "C>",
    "C> >D", "(", "(3CD", "[C2E2]4", "[", "{", '"', "!", "", " ", "C2|D2", "y", "1 C", "ä", "C\u0661",
]  # fmt: skip


def length(bar: str) -> object:
    try:
        return calculate_bartext_duration(bar)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("first", BARS)
def test_bars_are_compared_as_abctoolkit_counts_them(first, capsys):
    for second in BARS:
        lengths = length(first), length(second)
        if any(isinstance(one, type) for one in lengths if lengths[0] is not None):
            with pytest.raises(Exception, match="Illegal symbol"):
                bars_differ([[first], [second]])
        else:
            assert bars_differ([[first], [second]]) == (lengths[0] is not None and lengths[0] != lengths[1]), second


def test_every_bar_of_every_voice_counts():
    rng = random.Random(0)
    voice = [rng.choice(BARS[:16]) for _ in range(50)]
    assert not bars_differ([voice, voice, voice])
    assert bars_differ([voice, voice, [*voice[:-1], voice[-1] + "C"]])
    assert not bars_differ([voice])
    assert not bars_differ([["C8", "C/0", "C8"], ["C8", "C8", "C4"]])  # nothing is compared after a broken bar
