"""What a student's configuration refuses, and what it lets pass."""

import pytest

from lit_thinkfast.models import HybridConfig

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_options_of_unused_mixers_and_keys_of_teachers_stay():
    config = HybridConfig(**SIZES, mixer_options={"mamba2": {"d_conv": 3}}, pretraining_tp=1)
    assert config.layer_mixers == ["attention", "attention"]
    assert HybridConfig(**config.to_dict()).to_dict() == config.to_dict()
    assert config.options_of("mamba2") == {"d_conv": 3}
    assert config.pretraining_tp == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mixer_options": {"mmba2": {"d_conv": 3}}},
            "'mmba2', which is no mixer; known: discrete_mamba2, mamba1, mamba2",
        ),
        ({"mixer_options": {"attention": {"d_conv": 3}}}, "'attention', which is no mixer"),
        ({"layer_mixer": ["mamba2", "mamba2"]}, "no 'layer_mixer'; write 'layer_mixers'"),
        ({"mixer_option": {"mamba2": {}}}, "no 'mixer_option'; write 'mixer_options'"),
        ({"layer_mixers": ["mamba2"]}, "names 1 layers, but the model has 2"),
        ({"kernel": "fast"}, "unknown kernel 'fast'; use one of auto, torch, reference"),
        ({"base_model_type": "bert"}, "unknown model family 'bert'"),
    ],
)
def test_mistakes(values, message):
    with pytest.raises(ValueError, match=message) as error:
        HybridConfig(**SIZES, **values)
    assert "\n" not in str(error.value)
