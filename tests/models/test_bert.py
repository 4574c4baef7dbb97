"""The encoders of our own against those of transformers: states, gradients, names, masks, and compilation."""

from dataclasses import asdict

import pytest
import torch
from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel

from clamplib.models.bert import Bert
from clamplib.models.configs import EncoderConfig, make_config
from clamplib.models.encoders import make_text_model

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
}
KINDS = {"bert": (BertConfig, BertModel), "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel)}


@pytest.fixture(params=KINDS)
def both(request):
    """A model of transformers with random weights, and ours with the same."""
    make, model = KINDS[request.param]
    torch.manual_seed(0)
    theirs = model(make(**SIZES)).eval()
    for parameter in theirs.parameters():  # biases and padding too
        torch.nn.init.normal_(parameter, std=0.2)
    ours = make_text_model(make_config(theirs.config.to_dict())).eval()
    assert isinstance(ours, Bert)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def words_and_mask():
    words = torch.randint(2, 50, (3, 11))
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[1, 7:] = mask[2, 1:] = 0
    return words, mask


def assert_close_where_data(found, expected, mask):
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=2e-6, rtol=1e-5)


def test_states_of_words_are_those_of_transformers(both):
    ours, theirs = both
    words, mask = words_and_mask()
    words = words.where(mask.bool(), theirs.config.pad_token_id)
    found, expected = ours(words, mask), theirs(words, mask)
    assert_close_where_data(found.last_hidden_state, expected.last_hidden_state, mask)
    assert found["last_hidden_state"] is found[0] is found.last_hidden_state
    torch.testing.assert_close(ours(words)[0], theirs(words)[0], atol=2e-6, rtol=1e-5)


def test_states_and_gradients_of_vectors_are_those_of_transformers(both):
    ours, theirs = both
    vectors, (_, mask) = torch.randn(3, 11, 32), words_and_mask()
    gradients = []
    for model in both:
        states = model(inputs_embeds=vectors, attention_mask=mask)[0]
        (states * mask[..., None]).square().sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters() if value.grad is not None})
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name], atol=1e-4, rtol=1e-4)
    assert not {name for name in gradients[1].keys() - gradients[0].keys() if "pooler" not in name}


def test_training_without_padding_gives_the_same_states_and_gradients(both):
    ours, _ = both
    for module in ours.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    words, mask = words_and_mask()
    places = mask.bool().flip(0)  # the first item has one word
    found = []
    for training in (False, True):
        ours.train(training)
        ours.zero_grad()
        states = ours(words, places)[0]
        states[places].square().sum().backward()
        found.append((states.detach(), {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}))
    (padded, padded_gradients), (packed, packed_gradients) = found
    torch.testing.assert_close(packed[places], padded[places], atol=2e-6, rtol=1e-5)
    assert not packed[~places].any()
    assert packed_gradients.keys() == padded_gradients.keys()
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, padded_gradients[name], atol=1e-4, rtol=1e-4)


def test_a_mask_of_ones_is_no_mask(both):
    ours, _ = both
    words, mask = words_and_mask()
    assert torch.equal(ours(words, torch.ones_like(mask))[0], ours(words)[0])


@pytest.mark.parametrize("mask_type", [torch.bool, torch.int32, torch.float32])
def test_masks_of_any_type_and_padding_on_the_left(mask_type, both):
    ours, theirs = both
    words, mask = words_and_mask()
    words, mask = words.where(mask.bool(), theirs.config.pad_token_id).flip(1), mask.flip(1)
    assert_close_where_data(ours(words, mask.to(mask_type))[0], theirs(words, mask)[0], mask)


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_those_of_transformers(kind):
    expected = KINDS[kind][0]().to_dict()
    assert {name: expected[name] for name in asdict(EncoderConfig(kind))} == EncoderConfig(kind).to_dict()


@pytest.mark.parametrize("kind", KINDS)
def test_configs_of_transformers_are_accepted(kind):
    config = KINDS[kind][0](**SIZES)
    model = Bert(config)
    assert model.config is config
    assert model.state_dict().keys() == Bert(EncoderConfig(kind, **SIZES)).state_dict().keys()


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"model_type": "roberta"}, {"is_decoder": True}])
def test_other_models_are_those_of_transformers(changes):
    model = make_text_model(make_config({"model_type": "bert", **SIZES, **changes}))
    assert not isinstance(model, Bert)
    assert model(torch.ones(1, 3, dtype=torch.int64)).last_hidden_state.shape == (1, 3, 32)


def test_new_weights_are_drawn_as_for_bert():
    torch.manual_seed(0)
    model = Bert(EncoderConfig("xlm-roberta", **{**SIZES, "hidden_size": 256, "intermediate_size": 1024}))
    for name, value in model.named_parameters():
        if "LayerNorm" in name or "bias" in name:
            assert (value == float(name.endswith("LayerNorm.weight"))).all()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.embeddings.word_embeddings.weight[1].any()
    assert not model.embeddings.position_embeddings.weight[1].any()


def test_either_words_or_vectors():
    model = Bert(EncoderConfig(**SIZES))
    for inputs in ({}, {"input_ids": torch.ones(1, 2), "inputs_embeds": torch.ones(1, 2, 32)}):
        with pytest.raises(ValueError, match="expected either"):
            model(**inputs)


def test_compiled_states_are_the_same(both):
    ours, _ = both
    words, mask = words_and_mask()
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(words, mask)[0], ours(words, mask)[0], atol=2e-6, rtol=1e-5)


def test_checkpointed_gradients_are_the_same(both):
    model = both[0].train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    words, mask = words_and_mask()
    gradients = []
    for model.gradient_checkpointing in (False, True):
        torch.manual_seed(0)
        model.zero_grad()
        model(words, mask)[0].square().sum().backward()
        gradients.append([value.grad for value in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)
