"""Which class of reward model a folder is meant for."""

from __future__ import annotations

import os

from lit_thinkfast.verification.detection import Judge, judge_of
from lit_thinkfast.verification.head import HeadRewardModel
from lit_thinkfast.verification.likelihood import LikelihoodRewardModel
from lit_thinkfast.verification.reward import ProcessRewardModel, StepRewardModel
from lit_thinkfast.verification.scores import Aggregation


def load_reward_model(
    path: str | os.PathLike[str],
    *,
    judge: Judge | None = None,
    aggregation: Aggregation | None = None,
    batch_size: int = 16,
    device: str = "cpu",
    dtype: str = "float32",
) -> StepRewardModel:
    """Load a reward model, at once, as the class for the way in which it judges.

    Args:
        path: Hugging Face folder or hub id.
        judge: ``likelihood`` for :class:`LikelihoodRewardModel`, ``head`` for :class:`HeadRewardModel`, or any other
            protocol, for :class:`ProcessRewardModel`; by default what config, architecture or name of the model tell.
        aggregation: Of protocols; ``last`` by default.
        batch_size: Completions scored together.
        device: Where the model runs.
        dtype: Of the weights.

    Raises:
        FileNotFoundError: No such folder.
        ValueError: The model cannot judge, was made for another judge, or an aggregation is given for likelihoods.
    """
    if judge is not None and judge not in Judge.__args__:  # type: ignore[attr-defined]
        raise ValueError(f"{path}: unknown judge {judge!r}; known: {', '.join(Judge.__args__)}")  # type: ignore[attr-defined]
    made_for = judge or judge_of(path)
    model: StepRewardModel
    if made_for == "likelihood":
        if aggregation is not None:
            raise ValueError(
                f"aggregation {aggregation!r} is for signs, heads and other protocols; a likelihood is that of all "
                "steps already"
            )
        model = LikelihoodRewardModel(path, batch_size=batch_size, device=device, dtype=dtype)
    else:
        how = aggregation or "last"
        if made_for == "head":
            model = HeadRewardModel(path, aggregation=how, batch_size=batch_size, device=device, dtype=dtype)
        else:
            model = ProcessRewardModel(
                path, protocol=made_for, aggregation=how, batch_size=batch_size, device=device, dtype=dtype
            )
    model.load()
    return model
