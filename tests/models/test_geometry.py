import json

import pytest

from clamplib.models.geometry import Geometry


def test_published_names():
    geometry = Geometry()
    assert geometry.clamp3_weights_name("saas") == (
        "weights_clamp3_saas_h_size_768_t_model_FacebookAI_xlm-roberta-base_t_length_128_a_size_768_a_layers_12"
        "_a_length_128_s_size_768_s_layers_12_p_size_64_p_length_512.pth"
    )
    assert geometry.m3_weights_name() == (
        "weights_m3_p_size_64_p_length_512_t_layers_3_p_layers_12_h_size_768_lr_0.0001_batch_16_mask_0.45.pth"
    )


def test_configs():
    geometry = Geometry(m3_hidden_size=192, patch_num_layers=4, audio_hidden_size=128, dropout=0.0)
    symbolic, audio, decoder = geometry.symbolic_config(), geometry.audio_config(), geometry.decoder_config()
    assert (symbolic.num_attention_heads, symbolic.intermediate_size, symbolic.vocab_size) == (3, 768, 1)
    assert (symbolic.num_hidden_layers, symbolic.max_position_embeddings) == (4, 512)
    assert (audio.hidden_size, audio.num_attention_heads, audio.max_position_embeddings) == (128, 2, 128)
    assert (decoder.n_embd, decoder.n_head, decoder.n_inner) == (192, 3, 768)
    assert (decoder.n_positions, decoder.vocab_size) == (64, 128)
    assert symbolic.hidden_dropout_prob == audio.attention_probs_dropout_prob == decoder.attn_pdrop == 0.0


def test_text_config_needs_no_network():
    geometry = Geometry(text_config={"model_type": "xlm-roberta", "hidden_size": 96}, dropout=0.2)
    config = geometry.load_text_config()
    assert (config.model_type, config.hidden_size, config.hidden_dropout_prob) == ("xlm-roberta", 96, 0.2)


def test_round_trip_through_json():
    geometry = Geometry(learned_temperature=True, text_config={"model_type": "xlm-roberta"})
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"m3_hidden_size": 100}, "m3_hidden_size must be a multiple of 64"),
        ({"patch_length": 0}, "patch_length must be a whole number above 0, not 0"),
        ({"patch_size": 64.0}, "patch_size must be a whole number"),
        ({"dropout": 1.0}, "dropout"),
        ({"text_config": {}}, "model_type"),
    ],
)
def test_contradictions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Geometry(**values)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="no field color"):
        Geometry.from_dict({"color": 1})
