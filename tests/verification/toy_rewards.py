"""A reward model that looks at the text alone and needs no torch, so that a process with it starts fast."""

import time
import zlib

from lit_thinkfast.records import Problem
from lit_thinkfast.verification import RewardScore

PROBLEMS = [Problem(f"p{i}", f"What is {i} + {i}?", str(2 * i)) for i in range(4)]


class Toy:
    """Scores by the text alone, with odd last digits; may fail at a call."""

    name = "toy"

    def __init__(self, fails_at=None, seconds=0.0):
        self.fails_at, self.seconds, self.calls = fails_at, seconds, 0

    def score(self, problems, completions):
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        self.calls += 1
        time.sleep(self.seconds)
        numbers = [zlib.crc32(c.text.encode()) / 2**30 / 3 - 1 for c in completions]
        return [RewardScore((x / 7, x), x) for x in numbers]
