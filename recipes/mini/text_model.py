"""The initial text encoder of `mini`: a small XLM-R with its own tokenizer, without weights."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast, XLMRobertaConfig

VOCABULARY, HIDDEN, LAYERS, MAX_TOKENS = 6000, 192, 3, 64
RARE = 0.1  # the scores of characters that the trainer keeps only to cover the texts lie so close to the lowest
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def make_text_model(folder: Path, texts: Iterable[str]) -> None:
    """Writes config.json and the files of the tokenizer."""
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(folder)
    XLMRobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HIDDEN // 64,
        intermediate_size=4 * HIDDEN,
        max_position_embeddings=MAX_TOKENS + 4,  # positions start after the padding id
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    ).save_pretrained(folder)


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Trains a unigram tokenizer with XLM-R's special tokens. It lower-cases, as people type queries in any case."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    vocabulary = json.loads(tokenizer.to_str())["model"]["vocab"]
    tokenizer.model = models.Unigram(_repeatable(vocabulary), unk_id=SPECIAL.index("<unk>"))
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL}
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=MAX_TOKENS,
    )


def _repeatable(vocabulary: list[list]) -> list[tuple[str, float]]:
    """The tokens and their scores (log probabilities), as every training on the same texts gives them.

    The trainer sums in another order each time. It also scores the characters that it keeps only to cover the texts in
    a random order. Here they all have the lowest score.
    """
    tokens = vocabulary[len(SPECIAL) :]
    lowest = min(score for _, score in tokens)
    scores = {}
    for token, score in tokens:
        rare = len(token) == 1 and score < lowest + RARE
        scores[token] = round(lowest if rare else score, 6)
    return [(token, 0.0) for token in SPECIAL] + sorted(scores.items(), key=lambda item: (-item[1], item[0]))
