r"""Which layers need attention most: a greedy choice on the measured divergence from the teacher.

Student and teacher have the same body; the student's layers have mixers, the teacher's attention. A hybrid takes each
layer whole, with its MLP and norms, from one of the two, and embeddings, final norm and head from the student. It is
judged by the mean :math:`KL(p_{teacher} \| p_{hybrid})` in nats over the labelled tokens of held-out texts. Layers get
their attention back, or lose it, one a round: each that is left is tried, and the one with the lowest divergence stays.

After KL-guided layer selection, arXiv:2512.20569, in the direction ``restore``. There each layer is tried once, alone,
and after a short distillation of its own; here nothing is trained and every round measures anew, so that two layers
that do the same work are not both chosen. The first round is their ranking without that training. As there, mixers
that have learnt to imitate their attention layers say more than fresh ones; MLPs and norms should not have been trained
with them, or the teacher's layers no longer fit among the student's.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_thinkfast.distill.chunked import forward_kl_rows, labelled_rows
from lit_thinkfast.distill.losses import token_divergence
from lit_thinkfast.distill.measurements import LayerSet, MeasurementFile
from lit_thinkfast.distill.signals import Signals, read_signals
from lit_thinkfast.mixers import ATTENTION
from lit_thinkfast.models import HybridConfig, HybridForCausalLM
from lit_thinkfast.records import PackedBatch

Direction = Literal["restore", "replace"]
_NOT_OF_THE_MODEL = ("_name_or_path", "architectures", "dtype", "transformers_version")


@dataclass(frozen=True, slots=True)
class Choice:
    """One round of the greedy choice.

    Attributes:
        layer: The layer that was chosen, from 0.
        kl: Divergence with it, in nats a token.
        tried: Divergence with each layer that was tried.
        attention_layers: Layers that have attention from this round on, in ascending order.
    """

    layer: int
    kl: float
    tried: dict[int, float]
    attention_layers: LayerSet


@dataclass(frozen=True, slots=True)
class Ranking:
    """What came out of a greedy choice.

    Attributes:
        direction: ``restore`` gave layers their attention back, ``replace`` took it away.
        num_layers: Layers of the models.
        start: Divergence before the first round, in nats a token.
        choices: The rounds in their order.
    """

    direction: Direction
    num_layers: int
    start: float
    choices: list[Choice]

    @property
    def attention_layers(self) -> LayerSet:
        """Layers that have attention in the end, in ascending order."""
        return self.choices[-1].attention_layers

    @property
    def order(self) -> list[int]:
        """Layers that were chosen, the one in most need of attention first."""
        layers = [choice.layer for choice in self.choices]
        return layers if self.direction == "restore" else layers[::-1]


def choose_layers(
    num_layers: int,
    measure: Callable[[LayerSet], float],
    *,
    keep: int | None = None,
    direction: Direction = "restore",
) -> Ranking:
    """Choose layers one a round, each time the one with the lowest divergence; of equal ones the first.

    Args:
        num_layers: Layers of the models.
        measure: Gives the divergence of a hybrid from the layers that have attention in it.
        keep: Layers that have attention in the end; by default all or none, so that every layer has a rank.
        direction: ``restore`` starts from no attention, ``replace`` from nothing else.

    Raises:
        ValueError: ``keep`` leaves nothing to choose, or is more than there are layers.

    >>> need = {0: 1.0, 1: 3.0, 2: 2.0}
    >>> choose_layers(3, lambda layers: 6 - sum(need[i] for i in layers), keep=2).attention_layers
    (1, 2)
    """
    now, rounds = _plan(num_layers, keep=keep, direction=direction)
    start = measure(now)
    choices = []
    for _ in range(rounds):
        left = [i for i in range(num_layers) if (i in now) == (direction == "replace")]
        tried = {i: measure(_switched(now, i)) for i in left}
        chosen = min(tried, key=tried.__getitem__)
        now = _switched(now, chosen)
        choices.append(Choice(chosen, tried[chosen], tried, now))
    return Ranking(direction, num_layers, start, choices)


def measurements(num_layers: int, *, keep: int | None, direction: Direction) -> int:
    """Return how many hybrids :func:`choose_layers` measures.

    >>> measurements(4, keep=2, direction="restore"), measurements(4, keep=None, direction="replace")
    (8, 11)
    """
    _, rounds = _plan(num_layers, keep=keep, direction=direction)
    return 1 + sum(num_layers - i for i in range(rounds))


@torch.no_grad()
def rank_layers(
    teacher: HybridForCausalLM,
    student: HybridForCausalLM,
    batches: Sequence[PackedBatch],
    *,
    keep: int | None = None,
    direction: Direction = "restore",
    out: str | os.PathLike[str] | None = None,
    chunk_tokens: int = 1024,
    on_measure: Callable[[LayerSet, float], None] | None = None,
) -> Ranking:
    """Choose the layers that keep attention by measuring hybrids of ``teacher`` and ``student``.

    No weight is copied or changed. The teacher's last hidden states are computed once and held: tokens times width.

    Args:
        teacher: A model whose layers all have attention; :func:`lit_thinkfast.models.load_model` reads stock ones so.
        student: A model of the same body whose layers all have mixers, on the same device and in the same type.
        batches: Held-out rows, ``(b, t)`` each.
        keep: As in :func:`choose_layers`.
        direction: As in :func:`choose_layers`.
        out: File of the measurements, which a later call goes on with: with another ``keep``, or ``direction``, too.
        chunk_tokens: Tokens whose logits are held at a time.
        on_measure: Called after each measurement, also if it was in the file.

    Raises:
        ValueError: The models do not fit, no token has a label, a divergence is not a number, or ``out`` is of other
            models or texts.
    """
    _check_pair(teacher, student)
    num_layers = teacher.config.num_hidden_layers
    _plan(num_layers, keep=keep, direction=direction)
    tokens = [labelled_rows(batch)[0].numel() for batch in batches]
    if not sum(tokens):
        raise ValueError("the batches have no labelled token to measure on; use another corpus or a longer seq_len")
    modes = teacher.training, student.training
    teacher.eval(), student.eval()
    try:
        batches = [_on(teacher.device, batch) for batch in batches]
        taught = [read_signals(teacher, batch, needs=frozenset({"logits"})) for batch in batches]

        def divergence(layers: LayerSet) -> float:
            hybrid = assemble(teacher, student, layers)
            parts = [
                count * _mean_kl(hybrid, batch, signals, chunk_tokens=chunk_tokens)
                for batch, signals, count in zip(batches, taught, tokens, strict=True)
            ]
            return math.fsum(parts) / sum(tokens)

        with _memory(out, teacher, student, batches) as known:
            measure = _remembered(divergence, known, on_measure)
            return choose_layers(num_layers, measure, keep=keep, direction=direction)
    finally:
        teacher.train(modes[0]), student.train(modes[1])


def assemble(
    teacher: HybridForCausalLM, student: HybridForCausalLM, attention_layers: Iterable[int]
) -> HybridForCausalLM:
    """Return a model whose layers are those of ``teacher`` where named, else of ``student``: the same modules.

    It is for computing, not for saving, and its layers know their old places in a cache, which are the same.
    """
    chosen = set(attention_layers)
    names = [ATTENTION if i in chosen else name for i, name in enumerate(student.config.layer_mixers or [])]
    # What attention layers see, sliding windows among it, is in the teacher's configuration; a student has lost it.
    values = teacher.config.to_dict() | {
        "layer_mixers": names,
        "mixer_options": student.config.mixer_options,
        "tie_word_embeddings": student.config.tie_word_embeddings,
    }
    with torch.device("meta"):
        hybrid: HybridForCausalLM = HybridForCausalLM(HybridConfig.from_dict(values))
    hybrid.model.rotary_emb = teacher.model.rotary_emb
    hybrid.model.embed_tokens, hybrid.model.norm = student.model.embed_tokens, student.model.norm
    hybrid.lm_head = student.lm_head
    for i in range(len(names)):
        hybrid.model.layers[i] = (teacher if i in chosen else student).model.layers[i]
    hybrid.eval()
    return hybrid


def digest(model: HybridForCausalLM) -> str:
    """Return a short text that differs for models of other weights, types or settings; where they lie is no matter."""
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NOT_OF_THE_MODEL}
    total = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    _digest_tensors(total, model.state_dict().items())
    return total.hexdigest()[:16]


def _plan(num_layers: int, *, keep: int | None, direction: Direction) -> tuple[LayerSet, int]:
    """Return the layers that have attention before the first round, and how many rounds there are."""
    if direction not in ("restore", "replace"):
        raise ValueError(f"unknown direction {direction!r}; known: restore, replace")
    restore = direction == "restore"
    least, most = (1, num_layers) if restore else (0, num_layers - 1)
    goal = (most if restore else least) if keep is None else keep
    if not least <= goal <= most:
        raise ValueError(f"keep {keep} leaves nothing to {direction}; use {least} to {most} of {num_layers} layers")
    return ((), goal) if restore else (tuple(range(num_layers)), num_layers - goal)


def _switched(layers: LayerSet, layer: int) -> LayerSet:
    return tuple(sorted(set(layers) ^ {layer}))


def _remembered(
    measure: Callable[[LayerSet], float],
    known: MutableMapping[LayerSet, float],
    on_measure: Callable[[LayerSet, float], None] | None,
) -> Callable[[LayerSet], float]:
    """Return ``measure`` that computes nothing twice, and lets no hybrid win whose divergence is not a number."""

    def recall(layers: LayerSet) -> float:
        if layers not in known:
            value = measure(layers)
            if not math.isfinite(value):
                raise ValueError(
                    f"the divergence with attention in layers {list(layers)} is {value}; train the student first, or "
                    "use float32"
                )
            known[layers] = value
        if on_measure is not None:
            on_measure(layers, known[layers])
        return known[layers]

    return recall


def _mean_kl(hybrid: HybridForCausalLM, batch: PackedBatch, taught: Signals, *, chunk_tokens: int) -> float:
    ours = read_signals(hybrid, batch, needs=frozenset({"logits"}))
    return float(token_divergence(ours, taught, batch, forward_kl_rows, chunk_tokens=chunk_tokens))


def _check_pair(teacher: HybridForCausalLM, student: HybridForCausalLM) -> None:
    """Raise ``ValueError`` unless hybrids can be made of the two."""
    for i, name in enumerate(teacher.config.layer_mixers or []):
        if name != ATTENTION:
            raise ValueError(f"layer {i} of the teacher has a {name} mixer; it must have attention in all layers")
    for i, name in enumerate(student.config.layer_mixers or []):
        if name == ATTENTION:
            raise ValueError(f"layer {i} of the student has attention; it must have a mixer in all layers")
    for name in ("num_hidden_layers", "hidden_size", "vocab_size"):
        theirs, ours = getattr(teacher.config, name), getattr(student.config, name)
        if theirs != ours:
            raise ValueError(f"{name} is {theirs} in the teacher and {ours} in the student; they must share one body")
    for name in ("device", "dtype"):
        theirs, ours = getattr(teacher, name), getattr(student, name)
        if theirs != ours:
            raise ValueError(f"the teacher's {name} is {theirs} and the student's {ours}; load both with one {name}")


def _memory(
    out: str | os.PathLike[str] | None,
    teacher: HybridForCausalLM,
    student: HybridForCausalLM,
    batches: Sequence[PackedBatch],
) -> AbstractContextManager[MutableMapping[LayerSet, float]]:
    """Return where measurements are kept: the file, if there is one."""
    if out is None:
        return nullcontext({})
    corpus = hashlib.sha256()
    for batch in batches:
        _digest_tensors(corpus, sorted(batch.items()))  # type: ignore[arg-type]
    identity = {"teacher": digest(teacher), "student": digest(student), "corpus": corpus.hexdigest()[:16]}
    return MeasurementFile(out, identity=identity)


def _digest_tensors(total: hashlib._Hash, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)


def _on(device: torch.device, batch: PackedBatch) -> PackedBatch:
    return {name: values.to(device) for name, values in batch.items()}  # type: ignore[return-value, attr-defined]
