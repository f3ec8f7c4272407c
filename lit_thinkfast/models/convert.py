"""From a Transformer to a student: keep everything but the attention of some layers, and put mixers there.

The attention initialisation follows MambaInLlama (arXiv:2408.15237, Algorithm 1): see ``mixers/mamba2.py``.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lit_thinkfast.mixers import ATTENTION, Mixer, mixer_class
from lit_thinkfast.mixers.base import check_options
from lit_thinkfast.models.configuration import FAMILIES, HybridConfig
from lit_thinkfast.models.folders import check_free, save_folder
from lit_thinkfast.models.layers import plan_layers
from lit_thinkfast.models.loading import load_stock, load_tokenizer
from lit_thinkfast.models.modeling import HybridForCausalLM

Init = Literal["attention", "mohawk", "random"]

_NOT_TAKEN_OVER = (
    "model_type",
    "architectures",
    "transformers_version",
    "auto_map",
    "_name_or_path",
    "quantization_config",
    "reward_judge",
    "reward_scope",
)


def convert(
    teacher: PreTrainedModel | str | os.PathLike[str],
    *,
    layer_mixers: list[str] | None = None,
    attention_layers: Sequence[int] | Literal["published"] | None = None,
    attention_every: int | None = None,
    attention_ratio: float | None = None,
    mixer: str | None = None,
    init: Init = "attention",
    mixer_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> HybridForCausalLM:
    """Make a student from a teacher.

    Args:
        teacher: A Llama-family causal language model, or its folder or hub id. It is not changed. It may be a student:
            layers that have the same mixer in both keep it with its weights, so that attention can go step by step.
        layer_mixers: One name a layer, ``"attention"`` or a mixer's. Excludes the next three.
        attention_layers: Layers that keep attention, from 0; an empty list keeps none, ``"published"`` those of the
            paper's hybrid of this depth. To choose them by measurement: ``lit_thinkfast.distill.sensitivity``.
        attention_every: Every so many layers, the last keeps attention.
        attention_ratio: Share of layers, 0 to 1, that keep attention, spread evenly, the last of each group. Without
            any of the four no layer keeps attention, unless ``mixer`` is ``"attention"``.
        mixer: What the other layers get: ``"mamba2"`` if not given, or what other layers of a student have.
        init: ``"attention"`` starts mixers from the attention weights (arXiv:2408.15237, Algorithm 1), ``"mohawk"``
            neutrally, with an open gate and an identity convolution, as before MOHAWK's first stage, ``"random"`` from
            scratch; always, all other weights are the teacher's.
        mixer_options: Options of ``mixer``; of a student, those that are not given stay as they are. Mixers that it
            keeps keep their weights: initial values are for the new ones, and what would change the others is refused.
        seed: Of the parameters that are new.

    Returns:
        The student, in the teacher's type and on its device, in evaluation mode.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: Unknown mixer or option, a layer out of range, contradicting arguments, a layer that needs the
            attention it has lost, or a teacher that is not a causal language model of a known family.
    """
    if init not in get_args(Init):
        raise ValueError(f"unknown initialisation {init!r}; known: {', '.join(get_args(Init))}")
    if not isinstance(teacher, PreTrainedModel):
        teacher = load_stock(teacher, dtype=None)
    family = check_teacher(teacher)
    own = (teacher.config.layer_mixers or []) if isinstance(teacher.config, HybridConfig) else []
    keep, mixer = mixer is None, mixer or next((name for name in own if name != ATTENTION), "mamba2")
    names = plan_layers(
        teacher.config.num_hidden_layers,
        layer_mixers=layer_mixers,
        attention_layers=attention_layers,
        attention_every=attention_every,
        attention_ratio=attention_ratio,
        mixer=mixer,
    )
    if keep and own and layer_mixers is None:  # mixers of several kinds may stay what they are
        names = [old if ATTENTION not in (old, new) else new for old, new in zip(own, names, strict=True)]
    options = {mixer: dict(mixer_options)} if mixer_options else {}
    for name in {*names, *options} - {ATTENTION}:
        check_options(name, options.get(name, {}))
    if options and mixer == ATTENTION:
        raise ValueError(f"mixer_options {sorted(mixer_options or {})} have no mixer to go to: mixer is 'attention'")

    if isinstance(teacher.config, HybridConfig):
        _check_attention_left(teacher.config.layer_mixers or [], names, init=init)
        kept = {k: v for k, v in (teacher.config.mixer_options or {}).items() if k in names}
        _check_kept_options(teacher.config, names, mixer=mixer, given=options.get(mixer, {}))
        options = kept | {k: kept.get(k, {}) | v for k, v in options.items()}
    values = {key: value for key, value in teacher.config.to_dict().items() if key not in _NOT_TAKEN_OVER}
    config = HybridConfig(**values | {"base_model_type": family, "layer_mixers": names, "mixer_options": options})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        student = HybridForCausalLM(config)
    student.to(device=teacher.device, dtype=teacher.dtype)
    _copy_weights(teacher, student, init=init)
    if teacher.generation_config is not None:
        student.generation_config = type(teacher.generation_config).from_dict(teacher.generation_config.to_dict())
    student.eval()
    return student


def convert_folder(
    teacher: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layer_mixers: list[str] | None = None,
    attention_layers: Sequence[int] | Literal["published"] | None = None,
    attention_every: int | None = None,
    attention_ratio: float | None = None,
    mixer: str | None = None,
    init: Init = "attention",
    mixer_options: dict[str, Any] | None = None,
    seed: int = 0,
) -> HybridForCausalLM:
    """Convert a teacher and save the student with tokenizer, chat template and generation settings.

    Args:
        teacher: Folder or hub id; the other arguments are those of :func:`convert`.
        out: Folder to write. It appears whole or not at all; one that is there and not empty is not touched.
        layer_mixers: As in :func:`convert`.
        attention_layers: As in :func:`convert`.
        attention_every: As in :func:`convert`.
        attention_ratio: As in :func:`convert`.
        mixer: As in :func:`convert`.
        init: As in :func:`convert`.
        mixer_options: As in :func:`convert`.
        seed: As in :func:`convert`.

    Raises:
        FileExistsError: ``out`` is a file or a folder with something in it.
        FileNotFoundError: As :func:`convert`.
        ValueError: As :func:`convert`.
    """
    check_free(out)
    student = convert(
        teacher,
        layer_mixers=layer_mixers,
        attention_layers=attention_layers,
        attention_every=attention_every,
        attention_ratio=attention_ratio,
        mixer=mixer,
        init=init,
        mixer_options=mixer_options,
        seed=seed,
    )
    save_folder(student, out, tokenizer=load_tokenizer(teacher))
    return student


def to_stock(model: HybridForCausalLM) -> PreTrainedModel:
    """Return a model whose layers all have attention as the stock class of its family, with the same weights.

    Any program that reads the family then reads the model. It shares no storage with ``model``.

    Raises:
        ValueError: A layer has another mixer.
    """
    others = sorted(set(model.config.layer_mixers or []) - {ATTENTION})
    if others:
        raise ValueError(f"a model with {others[0]} layers has no stock class; save it as it is")
    values = model.config.to_dict()
    for key in (*_NOT_TAKEN_OVER, "base_model_type", "layer_mixers", "mixer_options", "layer_types"):
        values.pop(key, None)
    config = AutoConfig.for_model(model.config.base_model_type, **values)
    with torch.random.fork_rng(devices=[]):
        stock: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    stock.to(device=model.device, dtype=model.dtype)
    rotary: Any = stock.model  # whose frequencies the cast has rounded
    rotary.rotary_emb = type(rotary.rotary_emb)(config).to(model.device)
    stock.load_state_dict(model.state_dict())
    if model.generation_config is not None:
        stock.generation_config = type(model.generation_config).from_dict(model.generation_config.to_dict())
    return stock.eval()


def check_teacher(teacher: PreTrainedModel) -> str:
    """Return the family of a teacher.

    Raises:
        ValueError: Not a causal language model of a known family.
    """
    config = teacher.config
    family = config.base_model_type if isinstance(config, HybridConfig) else getattr(config, "model_type", None)
    known = ", ".join(FAMILIES)
    if family not in FAMILIES:
        raise ValueError(f"cannot convert a model of family {family!r}; known families: {known}")
    if getattr(teacher, "lm_head", None) is None or not hasattr(teacher, "model"):
        kind = type(teacher).__name__
        raise ValueError(f"the teacher is a {kind}, not a decoder-only causal language model; known families: {known}")
    return str(family)


def _check_attention_left(before: list[str], after: list[str], *, init: str) -> None:
    """Raise ``ValueError`` if a layer of a student needs the attention that it has lost already."""
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if old in (ATTENTION, new):
            continue
        lost = f"layer {i} of the teacher has a {old} mixer and no attention"
        if new == ATTENTION:
            raise ValueError(f"{lost} to go back to; convert the model that still has it")
        if init == "attention":
            raise ValueError(
                f"{lost} to start {new} from; keep it with mixer {old!r}, or start anew with init 'random'"
            )


def _check_kept_options(config: HybridConfig, names: list[str], *, mixer: str, given: dict[str, Any]) -> None:
    """Raise ``ValueError`` if an option would make another function of mixers that keep their weights."""
    pairs = list(zip(config.layer_mixers or [], names, strict=True))
    if (mixer, mixer) not in pairs or mixer == ATTENTION:
        return
    parameters = inspect.signature(mixer_class(mixer).__init__).parameters
    before = config.options_of(mixer)
    for option, value in given.items():
        own = before.get(option, parameters[option].default)
        if value != own and option not in mixer_class(mixer).free_options:
            kept = f"layer {pairs.index((mixer, mixer))} keeps its {mixer} mixer"
            raise ValueError(f"{kept}, which has {option} {own!r}; leave {option} out of mixer_options")


@torch.no_grad()
def _copy_weights(teacher: PreTrainedModel, student: HybridForCausalLM, *, init: str) -> None:
    """Copy all weights that both have, and start the mixers that are new as ``init`` says.

    Raises:
        ValueError: A weight has no counterpart, or one of another shape.
    """
    source: Any = teacher
    layers = list(zip(source.model.layers, student.model.layers, strict=True))
    replaced = tuple(
        f"model.layers.{i}.mixer."
        for i, (old, new) in enumerate(layers)
        if type(getattr(old, "mixer", None)) is not type(getattr(new, "mixer", None))
    )
    weights = {name: weight for name, weight in teacher.state_dict().items() if not name.startswith(replaced)}
    own = student.state_dict()
    for name, weight in weights.items():
        if name in own and weight.shape != own[name].shape:
            shapes = f"{tuple(weight.shape)} in the teacher and {tuple(own[name].shape)} in the student"
            remedy = "leave out what changes it in mixer_options" if ".mixer." in name else "its config is wrong"
            raise ValueError(f"{name}, which is kept, has shape {shapes}; {remedy}")
    missing, unexpected = student.load_state_dict(weights, strict=False)
    strangers = [name for name in unexpected if ".self_attn." not in name and ".mixer." not in name]
    lost = [name for name in missing if ".mixer." not in name and name != "lm_head.weight"]
    if strangers or lost:
        raise ValueError(f"the teacher's weights do not fit its family: {(strangers + lost)[0]} has no counterpart")
    student.tie_weights()
    for old, new in layers:
        mixer: nn.Module | None = getattr(new, "mixer", None)
        if not isinstance(mixer, Mixer) or type(getattr(old, "mixer", None)) is type(mixer):
            continue
        if init == "attention":
            mixer.init_from_attention(old.self_attn)
        elif init == "mohawk":
            mixer.init_mohawk()
