"""Several corpora as one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from lit_thinkfast.data.corpora import Corpus, Split
from lit_thinkfast.records import Example


class MixedCorpus:
    """Several corpora that take turns, each in its own order; a pass ends when one has no example left for its turn.

    Which example stands where depends on ``turns`` alone, so that a run goes on from any place as if it had not
    stopped.

    Args:
        corpora: The corpora.
        turns: Examples of each in a round, spread evenly over it, like [3, 1]; one of each if not given.

    Raises:
        ValueError: No corpora, or turns that are not one positive number each.
    """

    def __init__(self, corpora: list[Corpus], *, turns: list[int] | None = None) -> None:
        self.corpora = list(corpora)
        turns = [1] * len(self.corpora) if turns is None else list(turns)
        if not self.corpora:
            raise ValueError("corpora is an empty list; name at least one")
        if len(turns) != len(self.corpora) or any(turn < 1 for turn in turns):
            raise ValueError(f"turns {turns} is not one positive number for each of {len(self.corpora)} corpora")
        self.turns = turns
        # example j of n in a round stands at (j + 1/2) / n of it
        places = [((2 * j + 1) / (2 * n), which) for which, n in enumerate(turns) for j in range(n)]
        self._round = [which for _, which in sorted(places)]

    def examples(self, split: Split, *, start: int = 0) -> Iterator[Example]:
        """Yield the examples of ``split``, from number ``start`` on."""
        rounds, rest = divmod(start, len(self._round))
        begun = self._round[:rest]
        parts = []
        for which, corpus in enumerate(self.corpora):
            done = rounds * self.turns[which] + begun.count(which)
            part = iter(corpus.examples(split, start=max(0, done - 1)))
            if done and next(part, None) is None:
                return  # the pass ended before ``start``
            parts.append(part)
        for which in itertools.chain(self._round[rest:], itertools.cycle(self._round)):
            example = next(parts[which], None)
            if example is None:
                return
            yield example
