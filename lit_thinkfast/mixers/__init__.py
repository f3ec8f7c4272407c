"""Sequence mixers that can stand where attention stood, and the operators they are made of.

``MIXERS`` maps the name in a model's ``config.json`` to its class. A package that adds a mixer writes
``MIXERS["mine"] = MyMixer`` when it is imported. ``"attention"`` is reserved for the teacher's own attention.
"""

from __future__ import annotations

from lit_thinkfast.mixers.base import ATTENTION, MIXERS, Mixer, States, StateShapes, mixer_class
from lit_thinkfast.mixers.discrete_mamba2 import DiscreteMamba2Mixer
from lit_thinkfast.mixers.mamba1 import Mamba1Mixer
from lit_thinkfast.mixers.mamba2 import Mamba2Mixer

MIXERS["discrete_mamba2"] = DiscreteMamba2Mixer
MIXERS["mamba1"] = Mamba1Mixer
MIXERS["mamba2"] = Mamba2Mixer

__all__ = [
    "ATTENTION",
    "MIXERS",
    "DiscreteMamba2Mixer",
    "Mamba1Mixer",
    "Mamba2Mixer",
    "Mixer",
    "StateShapes",
    "States",
    "mixer_class",
]
