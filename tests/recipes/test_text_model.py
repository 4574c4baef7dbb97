"""The tokenizer of mini is the same whenever it is trained on the same texts."""

import json
import random

from recipes.mini.text_model import SPECIAL, train_tokenizer


def texts_with_rare_characters():
    rng = random.Random(0)
    words = ["slow", "jig", "reel", "in", "minor", "walzer", "慢", "快板", "ワルツ"]
    rare = [chr(code) for code in range(0x4E00, 0x4E00 + 200)]
    return [" ".join(rng.choices(words, k=6)) + " " + "".join(rng.sample(rare, 3)) for _ in range(400)]


def test_two_trainings_give_the_same_tokenizer():
    texts = texts_with_rare_characters()
    first, second = (json.loads(train_tokenizer(texts).backend_tokenizer.to_str()) for _ in range(2))
    assert first == second
    tokens = [token for token, _ in first["model"]["vocab"]]
    assert tuple(tokens[: len(SPECIAL)]) == SPECIAL
    assert len(set(tokens)) == len(tokens)


def test_a_text_becomes_the_tokens_that_it_is_made_of():
    texts = texts_with_rare_characters()
    tokenizer = train_tokenizer(texts)
    for text in texts[:20]:
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text.lower()
