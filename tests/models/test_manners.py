"""At home in the Hugging Face world: generate in all its modes, LoRA, the evaluation harness, torch.compile.

Each built-in mixer, in a student of three layers whose middle one keeps attention.
"""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_thinkfast.mixers import MIXERS
from lit_thinkfast.models import HybridForCausalLM, convert, load_model

BUILT_IN = sorted(name for name, mixer in MIXERS.items() if mixer.__module__.startswith("lit_thinkfast."))


@pytest.fixture(params=BUILT_IN)
def mixer(request):
    return request.param


@pytest.fixture
def student(helpers, mixer):
    made = helpers.student(f"hybrid {mixer}")
    made.generation_config.pad_token_id = 0
    made.generation_config.eos_token_id = None  # all of one length, which the twins count on
    return made


def padded_on_the_left(helpers):
    """Tokens that may not be seen are ordinary ones: the embedding of the padding token is zero and would hide it."""
    ids = helpers.tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    return ids, mask


def next_logits(model, row):
    """Logits after a list of tokens, by itself, without a cache."""
    with torch.no_grad():
        return model(torch.tensor([row]), use_cache=False).logits[0, -1]


# --- generate


def test_sampling_with_several_sequences_draws_from_the_right_distributions(helpers, student):
    """The same random numbers on logits of whole sequences, without padding and cache, one sequence at a time."""
    ids, mask = padded_on_the_left(helpers)
    torch.manual_seed(3)
    out = student.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=6,
        do_sample=True,
        temperature=0.7,
        top_k=0,
        num_return_sequences=3,
    )
    rows = [row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True) for _ in range(3)]
    torch.manual_seed(3)
    for _ in range(6):
        logits = torch.stack([next_logits(student, row) for row in rows])
        drawn = torch.multinomial((logits / 0.7).softmax(-1), 1)[:, 0].tolist()
        rows = [[*row, token] for row, token in zip(rows, drawn, strict=True)]
    assert out.shape == (6, 13)
    assert out[:, 7:].tolist() == [row[-6:] for row in rows]
    assert len({tuple(row) for row in out[:3].tolist()}) > 1


def test_beam_search_finds_the_likeliest_sequences(helpers, student):
    """With as many beams as there are tokens nothing is cut, so that all continuations of two tokens are the twin."""
    ids, mask = padded_on_the_left(helpers)
    size = student.config.vocab_size
    out = student.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=2,
        num_beams=size,
        num_return_sequences=4,
        do_sample=False,
        output_scores=True,
        return_dict_in_generate=True,
    )
    for number, (row, keep) in enumerate(zip(ids, mask, strict=True)):
        prompt = row[keep.bool()].tolist()
        first = next_logits(student, prompt).log_softmax(-1)
        both = torch.stack([next_logits(student, [*prompt, i]).log_softmax(-1) + first[i] for i in range(size)])
        best = both.flatten().topk(4)
        found = out.sequences[4 * number : 4 * number + 4, 7:]
        assert (found[:, 0] * size + found[:, 1]).tolist() == best.indices.tolist()
        torch.testing.assert_close(out.sequences_scores[4 * number : 4 * number + 4] * 2, best.values)


def test_sampling_beams(helpers, student):
    """Beams are reordered among caches while they are sampled: with a cache and without draw the same."""
    ids, mask = padded_on_the_left(helpers)
    outs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        options = {"max_new_tokens": 6, "num_beams": 4, "num_return_sequences": 2, "do_sample": True}
        outs.append(student.generate(ids, attention_mask=mask, use_cache=use_cache, **options))
    assert torch.equal(*outs)


@pytest.mark.parametrize("layers", ["hybrid", "recurrent"])
@pytest.mark.parametrize("how", ["assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit"])
def test_assisted_decoding_is_refused_in_a_line(helpers, mixer, layers, how):
    student = helpers.student(f"{layers} {mixer}")
    given = helpers.teacher() if how == "assistant_model" else 1
    with pytest.raises(ValueError, match="assisted decoding is not for stateful models") as error:
        student.generate(helpers.tokens(1, 6), max_new_tokens=3, do_sample=False, pad_token_id=0, **{how: given})
    assert how in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("layers", ["hybrid", "recurrent"])
def test_drafting_for_another_model_is_refused_in_a_line(helpers, mixer, layers):
    student = helpers.student(f"{layers} {mixer}")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    with pytest.raises(ValueError, match="a stateful model cannot draft for another") as error:
        helpers.teacher().generate(helpers.tokens(1, 6), assistant_model=student, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_with_attention_everywhere_may_assist_and_be_assisted(helpers, family):
    """Mistral's window of five tokens is full before the drafts are taken back."""
    teacher, ours = helpers.teacher(family), helpers.student("attention", family=family)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    ids = helpers.tokens(1, 8)
    expected = teacher.generate(ids, **options)
    assert torch.equal(teacher.generate(ids, assistant_model=ours, **options), expected)
    assert torch.equal(ours.generate(ids, assistant_model=teacher, **options), expected)
    assert torch.equal(ours.generate(ids, prompt_lookup_num_tokens=2, **options), expected)


# --- LoRA

TARGETS = ["in_proj", "out_proj", "q_proj", "v_proj"]
ADAPTED = {
    *(f"model.layers.{i}.mixer.{name}" for i in (0, 2) for name in ("in_proj", "out_proj")),
    *(f"model.layers.1.self_attn.{name}" for name in ("q_proj", "v_proj")),
}


def with_adapters(student, *, targets=TARGETS, seed=0, **options):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    torch.manual_seed(seed)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets, **options)
    return peft.get_peft_model(student, config)


def trained(model, ids, *, steps=15):
    """Losses of some steps of Adam on what is trainable."""
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def adapters_of(model):
    """Name of each adapted module and the matrix (out, in) that is added to its weight, by hand."""
    found = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            found[name] = module.scaling["default"] * module.lora_B["default"].weight @ module.lora_A["default"].weight
    return found


def test_lora_trains_adapters_alone(helpers, student):
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    ids = helpers.tokens(2, 9)
    plain = student(ids).logits
    model = with_adapters(student)
    torch.testing.assert_close(model(ids).logits, plain, rtol=0, atol=0)  # adapters start from nothing
    assert set(adapters_of(model)) == ADAPTED
    losses = trained(model, ids)
    assert losses[-1] < losses[0] / 2
    after = {name.replace(".base_layer", ""): weight for name, weight in model.get_base_model().state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)
    assert all(added.abs().max() > 1e-3 for added in adapters_of(model).values()), "each one has learnt"


def test_lora_on_all_linear_layers_finds_those_of_the_mixer(helpers, student):
    names = set(adapters_of(with_adapters(student, targets="all-linear")))
    assert names > ADAPTED
    linear = {name for name, module in student.named_modules() if hasattr(module, "lora_A")}
    assert names == linear
    assert {name for name in names if "layers.0" in name} >= {
        f"model.layers.0.mlp.{n}_proj" for n in ("gate", "up", "down")
    }


def test_lora_survives_saving_and_is_decoded_with(helpers, student, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    student.save_pretrained(tmp_path / "student")
    ids = helpers.tokens(2, 9)
    model = with_adapters(AutoModelForCausalLM.from_pretrained(tmp_path / "student"))
    trained(model, ids)
    expected = model(ids).logits
    assert (expected - student(ids).logits).abs().max() > 0.1
    model.save_pretrained(tmp_path / "adapters")
    assert not list((tmp_path / "adapters").glob("model*.safetensors")), "adapters alone"
    loaded = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapters").eval()  # finds the student by itself
    assert type(loaded.get_base_model()) is HybridForCausalLM
    torch.testing.assert_close(loaded(ids).logits, expected, rtol=0, atol=0)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    # one token at a time through the adapters, against whole sequences
    cached = loaded.generate(input_ids=ids[:, :5], **options)
    assert torch.equal(cached, loaded.generate(input_ids=ids[:, :5], use_cache=False, **options))


def test_lora_merges_into_a_student(helpers, student, tmp_path):
    before = {name: weight.clone() for name, weight in student.state_dict().items()}
    ids = helpers.tokens(2, 9)
    model = with_adapters(student)
    trained(model, ids)
    expected, added = model(ids).logits, adapters_of(model)
    merged = model.merge_and_unload()
    assert type(merged) is HybridForCausalLM
    own = merged.state_dict()
    assert own.keys() == before.keys()
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        torch.testing.assert_close(own[name], weight + added[module] if module in added else weight)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_lora_under_gradient_checkpointing(helpers, mixer):
    ids = helpers.tokens(2, 9)
    gradients = []
    for checkpointing in (False, True):
        model = with_adapters(helpers.student(f"hybrid {mixer}"), init_lora_weights=False).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model(input_ids=ids, labels=ids).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert len(gradients[0]) == 2 * len(ADAPTED)
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


# --- lm-evaluation-harness

CONTEXTS = ["Tom has 3 apples.", "Ann has 17 pears and gives away 5 of them. How many are left?", "2"]
ANSWERS = [" He eats 2.", " 12", " + 2 is 4, and that is all there is to say."]


@pytest.fixture
def spoken(mixer, tiny_teacher):
    """A student of two layers with the embedded world's tokenizer, far from uniform predictions."""
    made = convert(tiny_teacher, attention_layers=[1], mixer=mixer)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("proj.weight") or "embed" in name:
                parameter.mul_(6)
    return made


@pytest.fixture
def harness(spoken, tokenizer):
    huggingface = pytest.importorskip("lm_eval.models.huggingface", reason="lm-eval is not installed")
    return huggingface.HFLM(pretrained=spoken, tokenizer=tokenizer, batch_size=2, device="cpu")


def requests(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


def score(model, ids, start):
    """Log-probability of ``ids[start:]`` after what is before, and whether each was the likeliest; one token a run."""
    total, greedy = 0.0, True
    for i in range(start, len(ids)):
        scores = next_logits(model, ids[:i]).double().log_softmax(-1)
        total += float(scores[ids[i]])
        greedy &= int(scores.argmax()) == ids[i]
    return total, greedy


def continuation(model, ids, count):
    """Greedy tokens after ``ids``, each from the whole sequence."""
    new = []
    for _ in range(count):
        new.append(int(next_logits(model, [*ids, *new]).argmax()))
    return new


def own_words(model, tokenizer):
    """A context and the token that the model would say next, of which the text is read as that token again."""
    for context in (f"Tom has {i} apples" for i in range(100)):
        ids = tokenizer(context).input_ids
        new = continuation(model, ids, 1)
        if tokenizer(context + tokenizer.decode(new)).input_ids == ids + new:
            return context, tokenizer.decode(new)
    raise AssertionError("the model says nothing that can be read back")


def test_the_harness_scores_answers(spoken, harness, tokenizer):
    """Requests of several lengths share padded batches; the last one is what the model would say itself."""
    pairs = [*zip(CONTEXTS, ANSWERS, strict=True), own_words(spoken, tokenizer)]
    found = harness.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True)
    for (context, answer), (value, is_greedy) in zip(pairs, found, strict=True):
        start = len(tokenizer(context).input_ids)
        expected, greedy = score(spoken, tokenizer(context + answer).input_ids, start)
        assert value == pytest.approx(expected, rel=1e-5)
        assert is_greedy == greedy
    assert found[-1][1], "or the flag was false throughout"
    assert len({round(value / len(answer)) for (_, answer), (value, _) in zip(pairs, found, strict=True)}) > 1


def test_the_harness_scores_texts(spoken, harness, tokenizer):
    found = harness.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(c,) for c in CONTEXTS]), disable_tqdm=True
    )
    for text, value in zip(CONTEXTS, found, strict=True):
        ids = [harness.prefix_token_id, *tokenizer(text).input_ids]
        assert value == pytest.approx(score(spoken, ids, 1)[0], rel=1e-5)


def test_the_harness_generates(spoken, harness, tokenizer):
    """Prompts of several lengths are padded on the left; texts are cut where they are told to be."""
    ids = [tokenizer(context).input_ids for context in CONTEXTS]
    whole = [continuation(spoken, row, 6) for row in ids]
    assert tokenizer.eos_token_id not in itertools.chain(*whole), "or the twin must stop there"
    texts = [tokenizer.decode(tokens) for tokens in whole]
    stop = texts[1][2]
    options = {"max_gen_toks": 6, "do_sample": False}
    given = [(CONTEXTS[0], {"until": [], **options}), (CONTEXTS[1], {"until": [stop], **options})]
    found = harness.generate_until(requests("generate_until", given), disable_tqdm=True)
    assert found == [texts[0], texts[1].split(stop)[0]]


def test_the_harness_finds_a_student_by_its_folder(spoken, harness, tokenizer, tmp_path):
    from lm_eval.models.huggingface import HFLM

    spoken.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    loaded = HFLM(pretrained=str(tmp_path), batch_size=2, device="cpu", dtype="float32")
    assert type(loaded.model) is HybridForCausalLM
    pairs = list(zip(CONTEXTS, ANSWERS, strict=True))
    of_folder, of_model = (
        lm.loglikelihood(requests("loglikelihood", pairs), disable_tqdm=True) for lm in (loaded, harness)
    )
    assert of_folder == of_model


# --- torch.compile


@pytest.fixture
def compiler():
    """Counts what the compiler did, in a state of its own."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()
    counters.clear()


# torch reads .grad of whatever it traces, and says that this is of no use; its other warnings are of it as well
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("packed", [False, True])
def test_layers_compiled_in_place_compute_the_same(helpers, mixer, compiler, packed):
    """Traced, with a traced backward pass, but not through a C++ compiler. Names of parameters stay as they are."""
    plain, compiled = helpers.student(f"hybrid {mixer}").train(), helpers.student(f"hybrid {mixer}").train()
    for layer in compiled.model.layers:
        layer.compile(backend="aot_eager")
    ids = helpers.tokens(2, 13)
    options = {"seq_idx": (torch.arange(13) >= 8).long().expand(2, 13)} if packed else {}
    outs = [model(ids, labels=ids, **options) for model in (plain, compiled)]
    torch.testing.assert_close(outs[1].logits, outs[0].logits)
    for out in outs:
        out.loss.backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        assert theirs.grad is not None
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert compiler["stats"]["unique_graphs"] > 0, "something was traced"
    if not packed:
        assert not compiler["graph_break"]
        assert compiler["stats"]["unique_graphs"] == 2, "one for attention and one for all layers with the mixer"


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_compiled_layers_generate(helpers, student, mixer, compiler):
    compiled = helpers.student(f"hybrid {mixer}")
    for layer in compiled.model.layers:
        layer.compile(backend="eager")
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ids, mask = padded_on_the_left(helpers)
    assert torch.equal(
        compiled.generate(ids, attention_mask=mask, **options), student.generate(ids, attention_mask=mask, **options)
    )
    assert compiler["stats"]["unique_graphs"] > 0
