"""Stop strings against the naive loop that decodes the whole row after every token."""

import random

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lit_thinkfast.generation.stops import StopStrings

STOPS = {
    "characters": (["ab", "ba?"], ["a"], ["12", "123", " \n"], ["aaaa", "abab"]),
    "bytes": (["\u20ac"], ["ab"], ["\u00e9\u20ac", "b\u00e9"], ["\U0001f600"], ["\u20ac\u20ac", "aab"], [" a\u00e9", "ba "]),
    "byte_fallback": (["\u20ac"], ["ab"], ["\u00e9\u20ac", "b a"], ["A\u00e9"], ["a a", " "], ["AA", "\u20acab"]),
    "word_pieces": (["a b"], ["ab"], ["ba", " a"], ["bab", "b b b"], [" "]),
    "word_ends": (["a b"], ["ab"], ["ba", "a "], ["bab", "b b b"], [" "]),
}  # fmt: skip


def wrapped(model, decoder, *, special=("<pad>", "<end>")):
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[1])


def byte_level():
    """Few bytes in tokens of one to four, cut anywhere in a character."""
    pieces = [b"a", b"b", b" ", b"ab", b"ba", b" a", b"\xe2", b"\x82", b"\xac", b"\xe2\x82", b"\x82\xac", b"\xac\xe2"]
    pieces += [
        b"\xc3",
        b"\xa9",
        b"a\xc3",
        b"\xa9b",
        b"\xa9\xe2\x82",
        b"\xf0",
        b"\x9f",
        b"\x98\x80",
        b"\xf0\x9f",
        b"\x80a",
    ]
    pieces += ["\u20ac".encode(), "\u00e9\u20ac".encode(), "\u00e9a".encode()]
    table = bytes_to_letters()
    vocabulary = {"<pad>": 0, "<end>": 1} | {"".join(table[b] for b in p): i for i, p in enumerate(pieces, 2)}
    return wrapped(models.BPE(vocabulary, []), decoders.ByteLevel())


def bytes_to_letters():
    """The alphabet of byte-level BPE: printable bytes are themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def byte_fallback():
    """SentencePiece: spaces are letters, unknown characters single bytes, the first space is dropped."""
    pieces = ["a", "b", "ab", "\u2581", "\u2581a", "\u2581b", "a\u2581", "\u20ac", "A", "\u2581\u20ac", "\u00e9a"]
    pieces += [f"<0x{byte:02X}>" for byte in (0x41, 0xE2, 0x82, 0xAC, 0xC3, 0xA9)]
    vocabulary = {"<pad>": 0, "<end>": 1} | {piece: i for i, piece in enumerate(pieces, 2)}
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return wrapped(models.BPE(vocabulary, [], byte_fallback=True), decoders.Sequence(steps))


def word_pieces():
    pieces = ["a", "b", "##a", "##b", "ab", "##ab", "##ba", "##"]
    vocabulary = {"<pad>": 0, "<end>": 1} | {piece: i for i, piece in enumerate(pieces, 2)}
    return wrapped(models.WordPiece(vocabulary, unk_token="a"), decoders.WordPiece(prefix="##", cleanup=False))


def word_ends():
    """Tokens that end a word write a space, but only when another token follows."""
    pieces = ["a", "b", "a</w>", "b</w>", "ab</w>", "ba"]
    vocabulary = {"<pad>": 0, "<end>": 1} | {piece: i for i, piece in enumerate(pieces, 2)}
    return wrapped(models.BPE(vocabulary, [], end_of_word_suffix="</w>"), decoders.BPEDecoder(suffix="</w>"))


MAKERS = {"bytes": byte_level, "byte_fallback": byte_fallback, "word_pieces": word_pieces, "word_ends": word_ends}


@pytest.fixture(params=list(STOPS))
def named(request, characters):
    return request.param, characters if request.param == "characters" else MAKERS[request.param]()


def decode(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def naive(tokenizer, tokens, stops):
    """Number of tokens after which a stop string is in the text, and where the first begins."""
    for count in range(1, len(tokens) + 1):
        text = decode(tokenizer, tokens[:count])
        if places := [text.find(stop) for stop in stops if stop in text]:
            return count, min(places)
    return None


def as_the_engine_does(found, tokens):
    for count in range(1, len(tokens) + 1):
        if found.candidates[tokens[count - 1]] and (place := found.find(tokens[:count])) is not None:
            return count, place
    return None


def test_fires_when_and_where_the_naive_loop_does(named):
    name, tokenizer = named
    draw = random.Random(0)
    for stops in STOPS[name]:
        found = StopStrings(tokenizer, stops)
        near = [t for t in range(len(tokenizer)) if set(decode(tokenizer, [t])) & {"\ufffd", *"".join(stops)}]
        fired = 0
        for _ in range(150):
            # of few different tokens, so that stop strings of several come up
            some = draw.sample(near, k=min(len(near), 4)) + draw.choices(range(len(tokenizer)), k=draw.choice([1, 2]))
            tokens = draw.choices(some, k=draw.choice([3, 12, 30]))
            expected = naive(tokenizer, tokens, stops)
            assert as_the_engine_does(found, tokens) == expected, (stops, tokens, decode(tokenizer, tokens))
            fired += expected is not None
        assert 2 < fired < 150, stops


@pytest.mark.parametrize("maker", [byte_level, byte_fallback])
def test_characters_of_many_tokens_in_long_runs(maker):
    """A tail that begins amid such a run may begin amid a character."""
    tokenizer, draw = maker(), random.Random(2)
    table = bytes_to_letters()
    name = (lambda byte: table[byte]) if maker is byte_level else (lambda byte: f"<0x{byte:02X}>")
    spelled = {c: tokenizer.convert_tokens_to_ids([name(b) for b in c.encode()]) for c in "\u00e9\u20ac"}
    stops = ["\u00e9\u20ac\u20ac\u00e9\u20ac", "\u20ac\u20ac\u20ac\u20ac\u20ac"]
    found, fired = StopStrings(tokenizer, stops), []
    for _ in range(40):
        tokens = [token for c in draw.choices(list(spelled), k=40) for token in spelled[c]]
        expected = naive(tokenizer, tokens, stops)
        assert as_the_engine_does(found, tokens) == expected
        fired.append(expected[0] if expected else 0)
    assert max(fired) > 60


def test_only_the_end_of_a_long_row_is_decoded(named, monkeypatch):
    _, tokenizer = named
    found = StopStrings(tokenizer, ["Q9Q"])
    lengths = []
    stock = type(tokenizer).decode
    monkeypatch.setattr(
        type(tokenizer),
        "decode",
        lambda self, tokens, **kwargs: lengths.append(len(tokens)) or stock(self, tokens, **kwargs),
    )
    tokens = random.Random(1).choices(range(2, len(tokenizer)), k=1500)
    for count in range(1000, 1500):
        assert found.find(tokens[:count]) is None
    assert len(lengths) >= 500
    assert max(lengths) <= 40  # word pieces may write nothing


def test_few_tokens_can_complete_a_stop_string(characters):
    def names(stops, tokenizer):
        found = StopStrings(tokenizer, stops)
        return {tokenizer.convert_ids_to_tokens(int(i)) for i in found.candidates.nonzero()}

    assert names(["ab", "c9"], characters) == {"b", "9"}
    assert names(["xba "], byte_fallback()) >= {"\u2581", "\u2581a", "\u2581b", "a\u2581", "<0xE2>"}
    assert not names(["xba "], byte_fallback()) & {"a", "b", "ab", "\u20ac", "A", "\u00e9a", "<pad>", "<end>"}


def test_the_vocabulary_of_the_model_may_be_wider_or_narrower(characters):
    wide = StopStrings(characters, ["9"], vocabulary=64)
    assert wide.candidates.shape == (64,)
    assert wide.candidates.nonzero().flatten().tolist() == [characters.convert_tokens_to_ids("9")]
    tokens = characters("a9", add_special_tokens=False).input_ids
    assert wide.find([50, *tokens[:1], 60, *tokens[1:]]) == 1
    assert StopStrings(characters, ["9"], vocabulary=10).candidates.shape == (10,)
    assert not StopStrings(characters, ["9"], vocabulary=10).candidates.any()
    assert StopStrings(characters, ["9"]).candidates.shape == (len(characters),)


def test_special_tokens_write_nothing(characters):
    a, b, end = characters.convert_tokens_to_ids(["a", "b", "."])
    found = StopStrings(characters, ["ab", "."])
    assert not found.candidates[end]
    assert found.find([b, a, end, end, end, end, end, end, end, end, end, b]) == 1


def test_cuts_at_the_stop_string_that_begins_first(characters):
    found = StopStrings(characters, ["cd", "bcd", "x"])
    assert found.cut("abcdx") == "a"
    assert found.cut("ab") == "ab"
    assert found.cut("x") == ""
    tokens = characters("abcd", add_special_tokens=False).input_ids
    assert found.find(tokens) == 1


def test_no_stop_strings_are_never_found(characters):
    found = StopStrings(characters, ())
    assert not found.candidates.any()
    assert found.find([3, 4]) is None
    assert found.cut("text") == "text"


@pytest.mark.parametrize("stops", [[""], ["a", "\ufffd"], "ab", [3]])
def test_stop_strings_that_cannot_work_are_refused(characters, stops):
    with pytest.raises(ValueError, match="stop"):
        StopStrings(characters, stops)


def test_a_tokenizer_without_letters_is_refused():
    tokenizer = wrapped(models.BPE({"<pad>": 0, "<end>": 1, "+": 2}, []), decoders.Fuse())
    with pytest.raises(ValueError, match="no token writes letters"):
        StopStrings(tokenizer, ["+"])
