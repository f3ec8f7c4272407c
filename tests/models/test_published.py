"""Published configurations: the parameter counts of the published models, to the last one."""

import pytest
import torch

from lit_thinkfast.models import HybridConfig, HybridForCausalLM
from lit_thinkfast.models.layers import PUBLISHED_ATTENTION_LAYERS
from lit_thinkfast.models.published import PUBLISHED

COUNTS = {
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "mamba_in_llama_1b": 1_293_002_752,
    "mamba_in_llama_3b": 3_447_874_560,
    "llamba_1b": 1_405_159_936,
    "llamba_3b": 3_656_994_688,
    "llamba_8b": 8_841_204_736,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    config = HybridConfig.published(name)
    with torch.device("meta"):
        model = HybridForCausalLM(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]  # tied weights once


def test_layers_and_positions():
    for size, layers in (("1b", 16), ("3b", 28)):
        hybrid, llama = (HybridConfig.published(f"{name}_{size}") for name in ("mamba_in_llama", "llama32"))
        assert tuple(hybrid.attention_layers) == PUBLISHED_ATTENTION_LAYERS[layers]
        assert hybrid.options_of("mamba1")["dt_bias_mult"] == 2
        assert hybrid.options_of("mamba1")["gqa_expand"] == "reference"
        assert hybrid.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}
        assert llama.rope_parameters["rope_type"] == "llama3"
        assert llama.attention_layers == list(range(layers))
    assert HybridConfig.published("llamba_8b").attention_layers == []


def test_each_is_new_and_survives_a_file(tmp_path):
    for name in PUBLISHED:
        config = HybridConfig.published(name)
        config.save_pretrained(tmp_path / name)
        assert HybridConfig.from_pretrained(tmp_path / name).to_dict() == config.to_dict()
    config.mixer_options["discrete_mamba2"]["d_state"] = 3
    config.eos_token_id.append(0)
    assert HybridConfig.published(name).options_of("discrete_mamba2")["d_state"] == 64
    assert 0 not in HybridConfig.published("llama32_1b").eos_token_id


def test_an_unknown_name_lists_those_that_are_known():
    with pytest.raises(ValueError, match="unknown published configuration 'llamba_2b'") as error:
        HybridConfig.published("llamba_2b")
    assert all(name in str(error.value) for name in COUNTS)
    assert set(COUNTS) == set(PUBLISHED)
