"""Stop strings: has the text of a row come to one, and where is the text to be cut?

A stop string need not be a token: it may begin and end inside of tokens, and a character may be spread over several.
So it is the text that is searched. Two things keep that cheap. The engine asks only when a token has arrived that can
complete a stop string, which is one lookup for all rows (:attr:`StopStrings.candidates`). And only the last tokens of
the row are decoded, as many as can hold the longest stop string; the whole row is decoded once, where a stop string is
found in them.

It is exact for decoders that turn a token into text which depends on the tokens before it only by broken characters
and by a space between the two: byte-level BPE, SentencePiece with and without bytes, word pieces, plain characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lit_thinkfast.generation.config import check_stop_strings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character (yet)
_MOST_BYTES = 4  # of a character in UTF-8
_ANCHORS_TRIED = 1024


class StopStrings:
    """The stop strings of a run, as tokens of a tokenizer may write them.

    Special tokens write nothing, as in the texts of completions.

    Args:
        tokenizer: Of the model.
        stops: None empty. No stops at all are never found.
        vocabulary: Number of tokens that the model tells apart, ``None`` for those of the tokenizer.

    Attributes:
        candidates: bool ``(vocabulary,)``: tokens whose arrival may complete a stop string. The others cannot.

    Raises:
        ValueError: A stop string that is empty, or holds the replacement character U+FFFD.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], *, vocabulary: int | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = check_stop_strings(stops)
        self._longest = max((len(stop) for stop in self._stops), default=0)
        known = set(tokenizer.get_vocab().values())
        size = max(known) + 1 if vocabulary is None else vocabulary
        self.candidates = torch.zeros(size, dtype=torch.bool)
        # Least text of each token, in quarters of a character: 4 where it writes whole characters only, 1 where it may
        # be one byte of one, 0 where it writes nothing
        self._quarters = bytearray(size)
        if self._stops:
            self._read(sorted(token for token in known if token < size))

    def find(self, tokens: Sequence[int]) -> int | None:
        """Return where the text of a row is to be cut, or ``None`` where it holds no stop string.

        To be asked whenever a token of :attr:`candidates` has arrived, until a stop string is found: one that was
        complete before the last token is not searched for.

        Args:
            tokens: All tokens of the row, the new one last.

        Returns:
            Number of characters in front of the stop string, of the one that begins first if there are several. The
            text is that of all ``tokens``, without special ones.
        """
        for start in self._starts(tokens) if self._stops else ():
            if self._position(self._decode(tokens[start:])) is not None:
                # the first characters of a part may not be those of the whole
                return self._position(self._decode(tokens))
        return None

    def cut(self, text: str) -> str:
        """Return the text up to the first stop string in it, all of it where there is none."""
        return text[: self._position(text)]

    def _position(self, text: str) -> int | None:
        return min((found for stop in self._stops if (found := text.find(stop)) >= 0), default=None)

    def _decode(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def _starts(self, tokens: Sequence[int]) -> Iterator[int]:
        """Yield where to begin decoding so that a stop string completed by the last token is seen from one of them.

        Besides a character of the last token the stop string has at most ``longest - 1`` others. Enough tokens are
        taken to hold them, and one more to bear what a decoder does to the beginning of a text. Where that one may
        begin amid a character, one of the next three bytes begins a character.
        """
        quarters, start, needed = self._quarters, len(tokens) - 1, _MOST_BYTES * self._longest
        while start > 0 and needed > 0:
            start -= 1
            needed -= quarters[tokens[start]]
        yield max(start, 0)
        bytes_seen = 0
        while start > 0 and quarters[tokens[start]] < _MOST_BYTES and bytes_seen < _MOST_BYTES - 1:
            bytes_seen += quarters[tokens[start]]
            start += 1
            yield start

    def _read(self, tokens: list[int]) -> None:
        """Decode every token, alone and behind another one, and note what it can do."""
        alone = self._decode_all([[token] for token in tokens])
        anchor = self._anchor(tokens, alone)
        head = self._decode([anchor])
        for token, first, both in zip(tokens, alone, self._decode_all([[anchor, t] for t in tokens]), strict=True):
            piece = both.removeprefix(head)
            broken = _REPLACEMENT in piece or not both.startswith(head)
            self._quarters[token] = 1 if broken else _MOST_BYTES if piece else 0
            self.candidates[token] = broken or any(self._may_complete(text) for text in {piece, first})

    def _anchor(self, tokens: list[int], alone: list[str]) -> int:
        """Return a plain token to put in front of others, one that is parted from what follows if there is such."""
        plain = [t for t, text in zip(tokens, alone, strict=True) if text.isascii() and text.isalnum()][:_ANCHORS_TRIED]
        if not plain:
            raise ValueError("no token writes letters or digits alone, so stop strings cannot be told; use stop=[]")
        twice = self._decode_all([[token, token] for token in plain])
        return next((t for t, text in zip(plain, twice, strict=True) if text != 2 * self._decode([t])), plain[0])

    def _may_complete(self, piece: str) -> bool:
        """Whether a stop string can end within ``piece``, having begun there or before."""
        return any(
            head.endswith(stop) or stop.endswith(head)
            for stop in self._stops
            for head in (piece[:end] for end, last in enumerate(piece, 1) if last == stop[-1])
        )

    def _decode_all(self, rows: list[list[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return texts
