"""Sequence mixers that can stand where attention stood, and the operators they are made of.

``MIXERS`` maps the name in a model's ``config.json`` to its class. A package that adds a mixer writes
``MIXERS["mine"] = MyMixer`` when it is imported. ``"attention"`` is reserved for the teacher's own attention.
"""

from __future__ import annotations

from lit_thinkfast.mixers.base import ATTENTION, MIXERS, Mixer, StateShapes, mixer_class
from lit_thinkfast.mixers.mamba2 import Mamba2Mixer

MIXERS["mamba2"] = Mamba2Mixer

__all__ = ["ATTENTION", "MIXERS", "Mamba2Mixer", "Mixer", "StateShapes", "mixer_class"]
