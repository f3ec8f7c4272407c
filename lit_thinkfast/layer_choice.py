"""The verb ``sensitivity``: which layers should keep attention, measured, with its table.

As in ``tools``, the arguments are the command line's options and the docstring its help.
"""

# No postponed annotations: to resolve them, jsonargparse would import what is for type checkers only.
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lit_thinkfast.data.corpora import ArithmeticCorpus, Corpus, Gsm8kCorpus, JsonlCorpus, ParquetCorpus
from lit_thinkfast.jobs import Dtype, device_named, load_on
from lit_thinkfast.terminal import progress_bar

if TYPE_CHECKING:
    from rich.table import Table

    from lit_thinkfast.distill.sensitivity import Ranking
    from lit_thinkfast.records import PackedBatch

_MOST_EXAMPLES = 100_000  # an endless corpus of unusable examples must not be read for ever
_ROUNDS_A_TABLE = 7  # fit on a screen of 80 columns


def sensitivity(
    *,
    teacher: str,
    corpus: Corpus | str,
    out: str,
    student: str | None = None,
    keep: int | None = None,
    direction: Literal["restore", "replace"] = "restore",
    mixer: str | None = None,
    init: Literal["attention", "mohawk", "random"] | None = None,
    mixer_options: dict[str, Any] | None = None,
    split: Literal["train", "validation"] = "validation",
    seq_len: int = 1024,
    batch_size: int = 4,
    batches: int = 8,
    system: str | None = None,
    seed: int = 0,
    device: str = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Rank layers by their need of attention: greedily, by KL(teacher || hybrid) on held-out texts.

    Args:
        teacher: Folder or hub id of a Transformer.
        corpus: arithmetic, gsm8k, a file of prompts and responses (.jsonl or .parquet), or a class with its options
            as in the configurations of training, like lit_thinkfast.data.corpora.HubCorpus.
        out: JSON-lines file of measurements, which a later call with the same models and texts goes on with.
        student: Folder or hub id of a student with a mixer in every layer, best one that was trained; without it one is
            converted from the teacher.
        keep: Layers that keep attention; without it every layer gets a rank.
        direction: Give attention back to a student without any, or take it away from the teacher, layer by layer.
        mixer: Of the student that is converted, by its name in MIXERS; mamba2 if not given.
        init: How its mixers start; from attention if not given.
        mixer_options: Options of its mixer, like --mixer_options.d_conv 3.
        split: Of the corpus.
        seq_len: Tokens a row.
        batch_size: Rows a batch.
        batches: Batches to measure on; fewer if the split is smaller.
        system: System prompt of the texts, as text or the name of one: boxed, search-and-learn.
        seed: Of the parameters of a student that is converted.
        device: auto, cpu, cuda or cuda:1.
        dtype: Of the weights.
    """
    import rich

    from lit_thinkfast.distill.sensitivity import measurements, rank_layers
    from lit_thinkfast.models import convert

    if student is not None:
        for name, given in {"mixer": mixer, "init": init, "mixer_options": mixer_options}.items():
            if given is not None:
                raise ValueError(f"{name} is of a student that is converted; leave it out, or leave out student")
    for name, value in {"batch_size": batch_size, "batches": batches}.items():
        if value < 1:
            raise ValueError(f"{name} {value} is below 1")
    source = corpus_named(corpus) if isinstance(corpus, str) else corpus
    device = device_named(device)
    theirs = load_on(teacher, device=device, dtype=dtype)
    if student is None:
        start = init or "attention"
        ours = convert(theirs, mixer=mixer or "mamba2", init=start, mixer_options=mixer_options, seed=seed)
    else:
        ours = load_on(student, device=device, dtype=dtype)
    rows = held_out(source, teacher, split=split, seq_len=seq_len, batch_size=batch_size, count=batches, system=system)
    total = measurements(theirs.config.num_hidden_layers, keep=keep, direction=direction)
    with progress_bar("measuring") as update:
        done = itertools.count(1)
        ranking = rank_layers(
            theirs,
            ours,
            rows,
            keep=keep,
            direction=direction,
            out=out,
            on_measure=lambda layers, kl: update(next(done), total, f"{_number(kl)} nats/token with {_listed(layers)}"),
        )
    rounds = {"restore": "each round gives attention back to", "replace": "each round takes attention from"}[direction]
    print(f"KL(teacher || hybrid) in nats a token; {rounds} the layer marked *")
    for table in tables(ranking):
        rich.print(table)
    print(summary(ranking))
    print(f"measurements in {out}")


def corpus_named(name: str) -> Corpus:
    """Return the corpus that a name or a file stands for.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Neither.
    """
    named: dict[str, type[ArithmeticCorpus] | type[Gsm8kCorpus]] = {
        "arithmetic": ArithmeticCorpus,
        "gsm8k": Gsm8kCorpus,
    }
    if name in named:
        return named[name]()
    if Path(name).suffix not in (".jsonl", ".json", ".parquet"):
        raise ValueError(
            f"unknown corpus {name!r}; known: {', '.join(named)}, a .jsonl or .parquet file, or a class such as "
            "lit_thinkfast.data.corpora.HubCorpus"
        )
    if not Path(name).is_file():
        raise FileNotFoundError(f"no file {name}; name one that is there")
    return ParquetCorpus(name) if Path(name).suffix == ".parquet" else JsonlCorpus(name)


def held_out(
    corpus: Corpus,
    tokenizer: str,
    *,
    split: Literal["train", "validation"],
    seq_len: int,
    batch_size: int,
    count: int,
    system: str | None,
) -> "list[PackedBatch]":
    """Pack the first examples of a split, with the tokenizer beside a model.

    Raises:
        ValueError: The tokenizer is no fast one, or no example is usable.
    """
    from lit_thinkfast.data.loader import first_batches
    from lit_thinkfast.data.rows import RowPacker
    from lit_thinkfast.models import load_tokenizer

    loaded = load_tokenizer(tokenizer)
    if not loaded.is_fast:
        raise ValueError(f"the tokenizer in {tokenizer} has no fast form; convert it to a tokenizer.json first")
    packer = RowPacker(loaded, seq_len=seq_len, system=system)
    examples: Iterator[Any] = itertools.islice(iter(corpus.examples(split)), _MOST_EXAMPLES)
    found = first_batches(examples, packer, count=count, batch_size=batch_size)
    if not found:
        raise ValueError(f"the {split} split of {type(corpus).__name__} has no usable example")
    return found


def tables(ranking: "Ranking") -> "Iterator[Table]":
    """Yield the divergence by layer and round, with the chosen one marked; several tables if there are many rounds."""
    from rich.table import Table
    from rich.text import Text

    for first in range(0, len(ranking.choices), _ROUNDS_A_TABLE):
        rounds = ranking.choices[first : first + _ROUNDS_A_TABLE]
        table = Table()
        table.add_column("layer", justify="right")
        for number in range(first + 1, first + len(rounds) + 1):
            table.add_column(str(number), justify="right", no_wrap=True)
        for layer in range(ranking.num_layers):
            cells = [
                Text()
                if layer not in choice.tried
                else Text(f"{_number(choice.tried[layer])}*", "bold")
                if layer == choice.layer
                else Text(f"{_number(choice.tried[layer])} ")
                for choice in rounds
            ]
            table.add_row(str(layer), *cells)
        yield table


def summary(ranking: "Ranking") -> str:
    """Return the way from the start to the end in numbers, and the list that ``convert`` takes."""
    before = "no attention" if ranking.direction == "restore" else "attention everywhere"
    lines = [f"{_number(ranking.start)} nats/token with {before}, {_number(ranking.choices[-1].kl)} in the end"]
    first = ranking.choices[0].kl
    if first > ranking.start if ranking.direction == "restore" else first < ranking.start:
        lines.append(
            "the teacher's layers do not fit into this student, whose other weights were trained too; rank with one of "
            "which only the mixers were trained (trainable: mixer)"
        )
    if len(ranking.choices) == ranking.num_layers:
        return "\n".join([*lines, f"in need of attention, most first: {_listed(ranking.order)}"])
    return "\n".join([*lines, f"--attention-layers {_listed(ranking.attention_layers)}"])


def _number(kl: float) -> str:
    """Write six characters, rounded.

    >>> _number(0.12345678), _number(12.345678), _number(-1e-9)
    ('0.1235', '12.346', '0.0000')
    """
    kl = round(kl, 6) + 0.0  # no minus before a zero
    return f"{kl:.{max(0, 5 - len(str(int(kl))))}f}"


def _listed(layers: "tuple[int, ...] | list[int]") -> str:
    """Write layers as ``convert`` reads them."""
    return ",".join(map(str, layers)) or "none"
