"""The stream against what a plain reading of the corpus gives, over ranks, workers and restarts."""

import json
from collections import Counter

import pytest
import torch

from lit_thinkfast.data.blocks import Blocks
from lit_thinkfast.data.corpora import IndexedCorpus
from lit_thinkfast.data.loader import PackedLoader
from lit_thinkfast.data.packing import PackedStream
from lit_thinkfast.data.prompts import encode_example
from lit_thinkfast.records import Example

# more workers than cores are slow, not wrong
pytestmark = pytest.mark.filterwarnings("ignore:.*worker processes in total.*")


class Listed:
    """A finite corpus read at random. Each response tells which example it is."""

    def __init__(self, count):
        self.made = [Example(str(i), "Q", f"{i}." + "x" * (i * 7 % 23)) for i in range(count)]

    def size(self, split):
        return len(self.made)

    def example(self, split, index):
        return self.made[index]

    def examples(self, split, *, start=0):
        return iter(self.made[start:])


class Forward:
    """The same read forward only."""

    def __init__(self, count):
        self.made = Listed(count).made
        self.opened = []

    def examples(self, split, *, start=0):
        self.opened.append(start)
        return iter(self.made[start:])


SETTINGS = {"seq_len": 48, "batch_size": 2, "length": 10_000, "num_shards": 4, "block_size": 8}
CORPORA = [Listed(50), Forward(50)]


def stream(corpus, tokenizer, **changes):
    return PackedStream(corpus, tokenizer=tokenizer, **{**SETTINGS, **changes})


def take(batches, count):
    iterator = iter(batches)
    return [next(iterator) for _ in range(count)]


def same(left, right):
    return len(left) == len(right) and all(torch.equal(a[k], b[k]) for a, b in zip(left, right, strict=True) for k in a)


def texts(batches, tokenizer):
    """The documents of all rows, decoded, without padding."""
    found = []
    for batch in batches:
        for ids, seq, labels in zip(batch["input_ids"], batch["seq_idx"], batch["labels"], strict=True):
            for number in seq.unique():
                if (labels[seq == number] != -100).any():
                    found.append(tokenizer.decode(ids[seq == number]))
    return found


@pytest.mark.parametrize("corpus", CORPORA, ids=["indexed", "forward"])
def test_each_pass_holds_every_example_once(corpus, tokenizer):
    assert isinstance(corpus, IndexedCorpus) == isinstance(corpus, Listed)
    made = stream(corpus, tokenizer, num_shards=1)
    expected = Counter(tokenizer.decode(encode_example(tokenizer, e)[0]) for e in corpus.made)
    rows_a_pass = [sum(len(made._rows(0, p * 7 + b)) for b in range(7)) for p in range(3)]  # 50 = 6 * 8 + 2
    batches = take(stream(corpus, tokenizer, num_shards=1, batch_size=1), sum(rows_a_pass))
    start = 0
    orders = []
    for rows in rows_a_pass:
        found = texts(batches[start : start + rows], tokenizer)
        assert Counter(found) == expected
        orders.append(found)
        start += rows
    assert orders[0] != orders[1]


@pytest.mark.parametrize("corpus", CORPORA, ids=["indexed", "forward"])
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (4, 0), (2, 2)])
def test_ranks_and_workers_share_out_the_batches_of_one_process(corpus, tokenizer, ranks, workers):
    count = 24
    alone = take(stream(corpus, tokenizer), count)
    shared = []
    for rank in range(ranks):
        loader = PackedLoader(
            stream(corpus, tokenizer, rank=rank, world_size=ranks, length=count // ranks), num_workers=workers
        )
        shared.append(list(loader))
    assert same(alone, [shared[g % ranks][g // ranks] for g in range(count)])


@pytest.mark.parametrize("corpus", CORPORA, ids=["indexed", "forward"])
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0), (0, 4)])
@pytest.mark.parametrize("stop", [1, 7, 30])
def test_resumed_equals_uninterrupted(corpus, tokenizer, before, after, stop):
    whole = take(stream(corpus, tokenizer), stop + 12)
    first = PackedLoader(stream(corpus, tokenizer), num_workers=before)
    assert same(take(first, stop), whole[:stop])
    state = json.loads(json.dumps(first.state_dict()))  # integers and text only
    again = PackedLoader(stream(corpus, tokenizer), num_workers=after)
    again.load_state_dict(state)
    assert same(take(again, 12), whole[stop:])
    assert again.state_dict()["batches"] == stop + 12


def test_a_second_iteration_goes_on(tokenizer):
    whole = take(stream(Listed(50), tokenizer), 12)
    for workers in (0, 2):
        loader = PackedLoader(stream(Listed(50), tokenizer, length=4), num_workers=workers)
        assert len(loader) == 4
        assert same([*loader, *loader, *loader], whole)


def test_a_run_of_two_ranks_resumes_on_one_and_on_four(tokenizer):
    whole = take(stream(Listed(50), tokenizer), 28)
    ranks = [stream(Listed(50), tokenizer, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        take(rank, 8)
    gathered = {**ranks[0]._cursors, **ranks[1]._cursors}  # what state_dict gathers; run on real ranks below
    ranks[0].world_size = 1
    state = {**ranks[0].state_dict(), "cursors": [list(gathered[shard]) for shard in range(4)]}
    for world in (1, 4):
        resumed = [stream(Listed(50), tokenizer, rank=rank, world_size=world) for rank in range(world)]
        for one in resumed:
            one.load_state_dict(state)
        parts = [take(one, 12 // world) for one in resumed]
        assert same(whole[16:], [parts[g % world][g // world] for g in range(12)])


def _rank_main(rank, folder, tokenizer, results):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    one = stream(Listed(50), tokenizer, rank=rank, world_size=2)
    take(one, 9)
    state = one.state_dict()
    other = stream(Listed(50), tokenizer, rank=rank, world_size=2)
    other.load_state_dict(state)
    expected, found = take(one, 6), take(other, 6)
    results.put((rank, state, same(expected, found), other.state_dict() == one.state_dict()))
    torch.distributed.destroy_process_group()


def test_every_rank_saves_the_position_of_all(tokenizer, tmp_path):
    context = torch.multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    ranks = [context.Process(target=_rank_main, args=(r, tmp_path, tokenizer, results)) for r in range(2)]
    for process in ranks:
        process.start()
    found = sorted((results.get() for _ in ranks), key=lambda result: result[0])
    for process in ranks:
        process.join(30)
        assert process.exitcode == 0
    assert found[0][1] == found[1][1]
    assert found[0][1]["batches"] == 18
    assert all(result[2] and result[3] for result in found)
    alone = stream(Listed(50), tokenizer)
    take(alone, 18)
    assert alone.state_dict()["cursors"] == found[0][1]["cursors"]


def test_a_forward_corpus_is_opened_once_a_pass_and_not_read_again_on_resume(tokenizer):
    corpus = Forward(50)
    made = stream(corpus, tokenizer)
    take(made, 60)
    assert set(corpus.opened) == {0}
    passes = len(corpus.opened)
    assert passes > 2
    resumed = Forward(50)
    again = stream(resumed, tokenizer)
    again.load_state_dict(made.state_dict())
    take(again, 4)
    assert resumed.opened[0] > 0  # straight to the block, as the blocks of a pass are known
    early, position = Forward(50), stream(Forward(50), tokenizer)
    take(position, 8)
    one = stream(early, tokenizer)
    one.load_state_dict(position.state_dict())
    take(one, 1)
    assert early.opened[0] > 0  # within the first pass it need not be known


def test_blocks_of_other_ranks_are_not_kept(tokenizer):
    made = stream(Forward(400), tokenizer, rank=1, world_size=4)
    take(made, 20)
    assert len(made.blocks._passed) <= 1


def test_settings_of_the_checkpoint_are_compared(tokenizer):
    state = stream(Listed(50), tokenizer).state_dict()
    with pytest.raises(ValueError, match="seq_len was 48 when the checkpoint was written and is 64 now"):
        stream(Listed(50), tokenizer, seq_len=64).load_state_dict(state)


@pytest.mark.parametrize("reshuffle", [True, False])
def test_later_passes_have_the_rows_of_the_first_if_asked(tokenizer, reshuffle):
    """60 batches of two rows, of a corpus that makes some 24."""
    one = stream(Listed(48), tokenizer, reshuffle=reshuffle, num_shards=2)
    rows = {tuple(row.tolist()) for batch in take(one, 60) for row in batch["input_ids"]}
    assert len(rows) > 80 if reshuffle else len(rows) < 40


@pytest.mark.parametrize("kind", [Listed, Forward])
def test_an_empty_corpus(tokenizer, kind):
    with pytest.raises(ValueError, match=f"the train split of {kind.__name__} has no example"):
        take(stream(kind(0), tokenizer), 1)


def test_a_corpus_without_usable_examples_is_given_up(tokenizer):
    with pytest.raises(ValueError, match="no example of the corpus has a label within seq_len 3 tokens"):
        take(stream(Listed(5), tokenizer, seq_len=3), 1)


def test_ranks_and_workers_must_divide_the_shards(tokenizer):
    with pytest.raises(ValueError, match="num_shards 4 is not a multiple of 3 ranks x 1 workers; use num_shards 3"):
        stream(Listed(5), tokenizer, world_size=3)
    with pytest.raises(ValueError, match="num_shards 4 is not a multiple of 2 ranks x 3 workers; use num_shards 6"):
        PackedLoader(stream(Listed(5), tokenizer, world_size=2), num_workers=3)
    with pytest.raises(ValueError, match="batch_size 0 is below 1"):
        stream(Listed(5), tokenizer, batch_size=0)


def test_going_back_in_a_forward_corpus(tokenizer):
    blocks = Blocks(Forward(20), split="train", block_size=8, seed=0)
    expected = [[e.id for e in blocks.read(k)] for k in range(7)]
    assert [len(block) for block in expected] == [8, 8, 4, 8, 8, 4, 8]
    again = Blocks(Forward(20), split="train", block_size=8, seed=0)
    for k in (5, 1, 6, 0, 2):
        assert [e.id for e in again.read(k)] == expected[k]
