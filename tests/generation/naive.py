"""What the engine must equal: a loop without cache, batch or schedule, a batch padded on the left, and a ledger."""

import dataclasses

import torch

from lit_thinkfast.generation import backends
from lit_thinkfast.generation import engine as engine_module
from lit_thinkfast.generation.clock import Stopwatch
from lit_thinkfast.generation.engine import Engine
from lit_thinkfast.generation.picking import RowSettings, pick_tokens
from lit_thinkfast.generation.rng import uniforms
from lit_thinkfast.models import HybridCache
from lit_thinkfast.models.slots import SlotCache


@torch.no_grad()
def say(model, prompt, sample, *, ends=(), stops=(), tokenizer=None):
    """One sample: (tokens, stopped, cut). The whole text goes through the model for every token."""
    config, tokens = prompt.config, []
    settings = RowSettings.repeat(config, 1)
    while True:
        text = torch.tensor([[*prompt.tokens, *tokens]])
        logits = model(input_ids=text, use_cache=False, logits_to_keep=1).logits[:, -1]
        at = (torch.tensor([value]) for value in (prompt.key, sample, len(tokens)))
        tokens.append(int(pick_tokens(logits, uniforms(*at, seed=config.seed), settings)))
        written = tokenizer.decode(tokens, skip_special_tokens=True) if stops else ""
        cut = min((place for stop in stops if (place := written.find(stop)) >= 0), default=None)
        if cut is not None or tokens[-1] in ends:
            return tokens, True, cut
        if len(tokens) == config.max_new_tokens:
            return tokens, False, None


def say_all(model, prompts, **how):
    """Every wanted sample, by (index of its prompt, sample)."""
    return {(i, s): say(model, prompt, s, **how) for i, prompt in enumerate(prompts) for s in prompt.samples}


@torch.no_grad()
def say_padded(model, prompts, *, ends=()):
    """All samples as the rows of one batch, prompts padded on the left; rows go on beyond their end unheard."""
    owners = [(i, s) for i, prompt in enumerate(prompts) for s in prompt.samples]
    longest = max(len(prompt.tokens) for prompt in prompts)
    budget = max(prompt.config.max_new_tokens for prompt in prompts)
    ids = torch.zeros(len(owners), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (i, _) in enumerate(owners):
        own = prompts[i].tokens
        ids[row, longest - len(own) :], mask[row, longest - len(own) :] = torch.tensor(own), 1
    keys, samples = torch.tensor([prompts[i].key for i, _ in owners]), torch.tensor([s for _, s in owners])
    seeds = torch.tensor([prompts[i].config.seed for i, _ in owners])
    settings = RowSettings.of([prompts[i].config for i, _ in owners])
    cache = HybridCache(model.config, len(owners), longest + budget, dtype=model.dtype)
    logits = model(ids, attention_mask=mask, past_key_values=cache).logits[:, -1]
    said = []
    for position in range(budget):
        said.append(pick_tokens(logits, uniforms(keys, samples, torch.tensor(position), seed=seeds), settings))
        logits = model(said[-1][:, None], past_key_values=cache).logits[:, -1]
    found = {}
    for (i, s), tokens in zip(owners, torch.stack(said, 1).tolist(), strict=True):
        tokens = tokens[: prompts[i].config.max_new_tokens]
        end = next((at for at, token in enumerate(tokens, 1) if token in ends), None)
        found[i, s] = tokens[:end], end is not None, None
    return found


def make_engine(model, prompts, *, slots, **options):
    """An engine just large enough for these prompts."""
    return Engine(
        model,
        rows=slots,
        capacity=max(len(p.tokens) - 1 + p.config.max_new_tokens for p in prompts),
        max_new_tokens=max(p.config.max_new_tokens for p in prompts),
        **options,
    )


def run(engine, prompts, **options):
    """All finished rows, in the order they came."""
    return [row for rows in engine.run(prompts, **options) for row in rows]


def texts(rows):
    """What the rows said, as :func:`say_all` gives it."""
    assert len({(row.prompt, row.sample) for row in rows}) == len(rows), "a sample came twice"
    return {(row.prompt, row.sample): (row.tokens, row.stopped, row.cut) for row in rows}


class Work:
    """A clock that moves only when something is done, by an amount that tells what. Keeps a diary of the model's work.

    Args:
        monkeypatch: Of the test.
        model: Whose ``model.model`` encodes prompts.
    """

    def __init__(self, monkeypatch, model):
        self.time, self.chunks, self.steps = 0.0, [], []
        self._watch(monkeypatch, model.model, "forward", self._encoded)
        self._watch(monkeypatch, backends, "decode_step", self._stepped)
        self._watch(monkeypatch, engine_module, "pick_tokens", self._picked)
        self._watch(monkeypatch, SlotCache, "admit", self._admitted)
        self.watch = Stopwatch(now=lambda: self.time)

    def _watch(self, monkeypatch, owner, name, note):
        original = getattr(owner, name)

        def watched(*args, **kwargs):
            note(*args, **kwargs)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    def _encoded(self, *, input_ids, **_):
        self.chunks.append(input_ids.shape[1])
        self.time += self.chunk_cost(input_ids.shape[1])

    def _stepped(self, model, tokens, cache, *, longest):
        self.time += self.step_cost(len(tokens), len(self.steps))
        self.steps.append(len(tokens))

    def _picked(self, *_):
        self.time += 0.125

    def _admitted(self, cache, rows, prompt):
        self.time += self.admit_cost(len(rows))

    @staticmethod
    def chunk_cost(tokens):
        return 20.0 + tokens

    @staticmethod
    def step_cost(rows, step):
        return 1.0 + rows / 4 + step % 7

    @staticmethod
    def admit_cost(rows):
        return 2.0 + rows


@dataclasses.dataclass
class Entry:
    left: int
    seconds: float
    began: float


def ledger(prompts, lengths, *, slots, chunk):
    """Seconds, latency and clock at the end of every sample, as :class:`Work` costs and the rules of the engine say.

    Args:
        prompts: In order.
        lengths: Tokens of every sample, by (prompt, sample).
        slots: Rows at most.
        chunk: Tokens of a prompt encoded at a time.
    """
    waiting = [(i, prompt, list(prompt.samples)) for i, prompt in enumerate(prompts) if prompt.samples]
    share, active, done, now, step = {}, {}, {}, 0.0, 0
    while waiting or active:
        while waiting and len(active) < slots:
            i, prompt, left = waiting[0]
            began = now
            if i not in share:
                stored = len(prompt.tokens) - 1
                work = sum(Work.chunk_cost(min(chunk, stored - at)) for at in range(0, stored, chunk))
                share[i], now = work / len(left), now + work
            taken, left[:] = left[: slots - len(active)], left[slots - len(active) :]
            work = Work.admit_cost(len(taken))
            now += work
            for s in taken:
                active[i, s] = Entry(lengths[i, s], share[i] + work / len(taken), began)
            if not left:
                waiting.pop(0)
        work = Work.step_cost(len(active), step) + 0.125
        step, now = step + 1, now + work
        for entry in active.values():
            entry.left -= 1
            entry.seconds += work / len(active)
        for key in [key for key, entry in active.items() if not entry.left]:
            entry = active.pop(key)
            done[key] = entry.seconds, now - entry.began, now
    return done
