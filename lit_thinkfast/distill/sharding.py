"""Weights spread over ranks (FSDP2), for students and teachers too large to be held whole by each.

Lightning's ``ModelParallelStrategy`` gives the mesh; here is what is sharded, how losses reach sharded weights, and how
a whole model is put together again to be exported. Each decoder layer is a unit of its own, and what remains,
embeddings, final norm and head, is one more that stays gathered between forward and backward pass; of a teacher, which
has no backward pass, for good.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


def shard(model: Any, mesh: DeviceMesh) -> None:
    """Spread the weights of a causal language model over the ranks of a mesh, in place; frozen ones too.

    Set what is trainable before. Weights that a device cannot hold whole are best loaded on the CPU, whence each rank
    takes its part.

    Args:
        model: A causal LM of transformers, ours included.
        mesh: Of one dimension.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    spared = {name for name, p in model.named_parameters() if getattr(p, "_no_weight_decay", False)}
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for name, parameter in model.named_parameters():  # sharding makes new parameters, without these marks
        if name in spared:
            parameter._no_weight_decay = True
    model.within = types.MethodType(lambda _, compute: compute(), model)
    register_fsdp_forward_method(model, "within")


def is_sharded(model: nn.Module) -> bool:
    """Are the model's weights spread over ranks by :func:`shard`?"""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def within(model: Any, compute: Callable[[], T]) -> T:
    """Return ``compute()``, in which weights of ``model`` outside its layers are whole, and layers can be called."""
    if not is_sharded(model):
        return compute()
    if not torch.is_inference_mode_enabled():
        return model.within(compute)  # type: ignore[no-any-return]
    # weights that are gathered for the first time in inference mode, as by a validation before training, could not be
    # trained later
    with torch.inference_mode(False), torch.no_grad():
        return model.within(compute)  # type: ignore[no-any-return]


def full_student(model: Any) -> Any | None:
    """Return the model with whole weights; of a sharded one, a copy on the CPU of rank 0, and ``None`` elsewhere.

    All ranks must call it.
    """
    if not is_sharded(model):
        return model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not weights:
        return None
    unsharded: Any = next(kind for kind in type(model).__mro__ if not _made_by_fsdp(kind))
    with torch.random.fork_rng(devices=[]):  # values that are overwritten must cost no random numbers
        whole = unsharded(model.config)
    whole.load_state_dict(weights)
    whole.generation_config = model.generation_config
    return whole


def _made_by_fsdp(kind: type) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return issubclass(kind, FSDPModule)
