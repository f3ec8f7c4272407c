"""A model in the words of another project: what its files say, before they are written or after they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class ForeignModel:
    """Configuration and weights under the names of another project.

    Attributes:
        config: What goes into ``config.json``.
        weights: State dict, without the copies of tied weights that the format leaves out.
        files: Further JSON files, by name.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    files: dict[str, Any] = field(default_factory=dict)
