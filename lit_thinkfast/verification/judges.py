"""Which class of reward model a folder is meant for."""

from __future__ import annotations

import os

from lit_thinkfast.verification.head import HeadRewardModel
from lit_thinkfast.verification.likelihood import LikelihoodRewardModel
from lit_thinkfast.verification.reward import Aggregation, Judge, ProcessRewardModel, StepRewardModel


def load_reward_model(
    path: str | os.PathLike[str],
    *,
    judge: Judge | None = None,
    aggregation: Aggregation | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
) -> StepRewardModel:
    """Load a reward model, at once, as the class that its ``config.json`` names under ``reward_judge``.

    Args:
        path: Hugging Face folder or hub id.
        judge: ``signs`` for :class:`ProcessRewardModel`, ``head`` for :class:`HeadRewardModel`, ``likelihood`` for
            :class:`LikelihoodRewardModel`; by default what the config says, and ``signs`` where it says nothing, as
            published models do.
        aggregation: Of signs and heads; ``last`` by default.
        batch_size: Completions scored together.
        device: Where the model runs.
        dtype: Of the weights.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: The model cannot judge, was made for another judge, or an aggregation is given for likelihoods.
    """
    made_for = _made_for(path)
    judge = judge or made_for or "signs"
    if judge not in Judge.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"{path}: unknown judge {judge!r}; known: signs, head, likelihood")
    model: StepRewardModel
    if judge != "likelihood":
        of_lines = ProcessRewardModel if judge == "signs" else HeadRewardModel
        model = of_lines(path, aggregation=aggregation or "last", batch_size=batch_size, device=device, dtype=dtype)
    elif aggregation is not None:
        raise ValueError(
            f"aggregation {aggregation!r} is for signs and heads; a likelihood is that of all steps already"
        )
    else:
        model = LikelihoodRewardModel(path, batch_size=batch_size, device=device, dtype=dtype)
    model.load()
    return model


def _made_for(path: str | os.PathLike[str]) -> Judge | None:
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(path)
    except OSError:
        return None  # loading will say what is wrong with it
    return values.get("reward_judge")  # type: ignore[no-any-return]
