"""The student: a Hugging Face decoder whose layers mix with attention or with one of our recurrent mixers.

Importing this room makes ``AutoConfig`` and ``AutoModelForCausalLM`` know the student.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lit_thinkfast.models.cache import HybridCache
from lit_thinkfast.models.configuration import HybridConfig
from lit_thinkfast.models.convert import convert, convert_folder
from lit_thinkfast.models.loading import load_model, load_tokenizer
from lit_thinkfast.models.modeling import HybridForCausalLM, HybridModel


def register_auto_classes() -> None:
    """Make the Auto classes of transformers know the student. Doing so twice does no harm."""
    AutoConfig.register(HybridConfig.model_type, HybridConfig, exist_ok=True)
    AutoModel.register(HybridConfig, HybridModel, exist_ok=True)
    AutoModelForCausalLM.register(HybridConfig, HybridForCausalLM, exist_ok=True)


register_auto_classes()

__all__ = [
    "HybridCache",
    "HybridConfig",
    "HybridForCausalLM",
    "HybridModel",
    "convert",
    "convert_folder",
    "load_model",
    "load_tokenizer",
    "register_auto_classes",
]
