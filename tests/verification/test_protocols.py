"""Published protocols against what their authors' programs do, written out step by step for one text at a time."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification, MistralForCausalLM, Qwen2Model

from lit_thinkfast.data.prompts import PROMPTS
from lit_thinkfast.records import Completion, Problem
from lit_thinkfast.verification import ProcessRewardModel, load_reward_model
from lit_thinkfast.verification.detection import judge_of
from lit_thinkfast.verification.protocols import PROTOCOLS, MathShepherd
from lit_thinkfast.verification.scores import NO_STEP

from . import prm_models as made

TAG = "\u043a\u0438"
QUESTION = "What is 2 + 3 - 1?"
TEXTS = [
    "Step 1: a = 2 + 3 = 5.\n\nStep 2: so 5 - 1 = 4.\n\nThe answer is 4.",
    "Step 1: a = 2 + 3\n= 5.\nThe answer is 5.\n",
    f"one\n\n+\n\n-\n\n{TAG} is {TAG}\n+\n\n{TAG}\nThe answer is <extra_0> + <|eot_id|>.",
    "",
    "one line",
]
QWEN_PRM = {"score.0.weight": (32, 32), "score.0.bias": (32,), "score.2.weight": (2, 32), "score.2.bias": (2,)}
QWEN_RM = QWEN_PRM | {"score.2.weight": (1, 32), "score.2.bias": (1,)}
SKYWORK = {"v_head.summary.weight": (1, 32), "v_head.summary.bias": (1,)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prm")


@pytest.fixture(scope="module")
def llama(folder):
    return made.llama(folder / "Llama3.1-8B-PRM-Deepseek-Data")


@pytest.fixture(scope="module")
def mistral(folder):
    return made.mistral(folder / "math-shepherd-mistral-7b-prm")


@pytest.fixture(scope="module")
def qwen_prm(folder):
    return made.qwen(folder / "qwen_prm", "Qwen2ForProcessRewardModel", QWEN_PRM)


@pytest.fixture(scope="module")
def qwen_rm(folder):
    return made.qwen(folder / "qwen_rm", "Qwen2ForRewardModel", QWEN_RM)


@pytest.fixture(scope="module")
def skywork(folder):
    tokenizer = made.qwen_tokenizer(bos_token="<|endoftext|>")
    return made.qwen(folder / "skywork", "Qwen2ForPrmModel", SKYWORK, parts=3, tokenizer=tokenizer)


def completions(texts=TEXTS):
    return [Completion("p", i, text, 1, 1, "stop", 0.0, 0.0) for i, text in enumerate(texts)]


def scores(model, texts=TEXTS):
    return [list(score.step_log_odds) for score in model.score([Problem("p", QUESTION, "4")], completions(texts))]


def check(model, naive, texts=TEXTS):
    """Batched, the scores are those of ``naive(text)``, probabilities."""
    for text, found in zip(texts, scores(model, texts), strict=True):
        expected = naive(text)
        assert len(found) == len(expected)
        assert torch.tensor(found).sigmoid().tolist() == pytest.approx(expected, abs=2e-5)


def spaced(tokenizer, text):
    """Text without special tokens: a space parts their first sign from the rest."""
    for token in [*tokenizer.all_special_tokens, "<extra_0>"]:
        if tokenizer.convert_tokens_to_ids(token) is not None:
            text = text.replace(token, token[0] + " " + token[1:])
    return text


@pytest.mark.parametrize(("name", "batch_size"), [("auto", 3), ("rlhflow-mistral", 2)])
def test_rlhflow_judges_a_growing_conversation(llama, name, batch_size):
    tokenizer, model = AutoTokenizer.from_pretrained(llama), LlamaForCausalLM.from_pretrained(llama)
    candidates = [tokenizer.encode("+")[-1], tokenizer.encode("-")[-1]]

    def naive(text):
        steps = spaced(tokenizer, text).split("\n\n")
        if name == "rlhflow-mistral":
            steps = [s.strip() for s in text.split(f"{TAG}\n" if f"{TAG}\n" in text else "\n") if s.strip()] or [""]
            steps = [spaced(tokenizer, step) for step in steps]
        conversation, found = [], []
        for k, step in enumerate(steps):
            turn = f"{QUESTION} {step}" if k == 0 else step
            conversation += [{"role": "user", "content": turn}, {"role": "assistant", "content": "+"}]
            ids = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)["input_ids"]
            with torch.no_grad():
                found.append(model(ids).logits[0, -3, candidates].softmax(-1)[0].item())
        return found

    reward_model = ProcessRewardModel(llama, protocol=name, batch_size=batch_size)
    check(reward_model, naive)
    assert [len(steps) for steps in scores(reward_model)] == {
        "auto": [3, 1, 5, 1, 1],
        "rlhflow-mistral": [3, 3, 3, 1, 1],
    }[name]


def test_rlhflow_asks_with_the_tokens_of_the_conversation(llama):
    tokenizer, text = AutoTokenizer.from_pretrained(llama), "one + two\n\n+\n\nthree"
    model = ProcessRewardModel(llama)
    found = model.encode(QUESTION, completions([text])[0])
    turns = [f"{QUESTION} one + two", "+", "+", "+", "three", "+"]
    roles = ["user", "assistant"] * 3
    conversation = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    assert found.ids == tokenizer.apply_chat_template(conversation, return_dict=True)["input_ids"]
    tail = ["<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n", "+", "<|eot_id|>"]
    for end in found.ends:
        assert [tokenizer.decode(token) for token in found.ids[end + 1 : end + 3]] == tail[-2:]
        assert tokenizer.decode(found.ids[: end + 3]).endswith("".join(tail))
    assert len(found.ends) == 3
    assert sum(tokenizer.decode(token).strip() == "+" for token in found.ids) == 6, "more signs than are judged"


@pytest.mark.parametrize("name", ["auto", "math-shepherd-blocks"])
def test_math_shepherd_judges_at_its_tag(mistral, name):
    tokenizer, model = AutoTokenizer.from_pretrained(mistral), MistralForCausalLM.from_pretrained(mistral)
    candidates, tag = tokenizer.encode("+ -")[1:], tokenizer.encode(TAG)[-1]

    def naive(text):
        if name == "auto":
            asked = f"{QUESTION} " + "\n".join(f"{line} {TAG}" for line in text.strip("\n").split("\n"))
        else:
            output = text.replace("\n\n", f" {TAG}\n\n")
            output = output if output[-2:] == "\n\n" else f"{output} {TAG}"
            asked = f"{PROMPTS['search-and-learn']}\n{QUESTION}\n {output}"
        ids = torch.tensor([tokenizer.encode(asked)])
        with torch.no_grad():
            probabilities = model(ids).logits[0][:, candidates].softmax(-1)[:, 0]
        return probabilities[ids[0] == tag].tolist()

    plain = ["Step 1: a = 2 + 3 = 5.\nStep 2: so 5 - 1 = 4.\nThe answer is 4.", "one line"]
    check(ProcessRewardModel(mistral, protocol=name, batch_size=3), naive, plain if name == "auto" else TEXTS[:2])
    counts = [len(steps) for steps in scores(ProcessRewardModel(mistral, protocol=name))]
    assert counts == ([3, 3, 7, 1, 1] if name == "auto" else [3, 1, 5, 1, 1]), "the tag in a text is not a step's end"


def test_math_shepherds_own_samples_bring_their_tags(mistral):
    tokenizer, model = AutoTokenizer.from_pretrained(mistral), ProcessRewardModel(mistral)
    tagged = f"Step 1: 2 + 3 = 5. {TAG}\nStep 2: 5 - 1 = 4. The answer is 4 {TAG}"
    found = model.encode(QUESTION, completions([tagged])[0])
    assert found.ids == tokenizer.encode(f"{QUESTION} {tagged}")
    bare = model.encode(QUESTION, completions([tagged.replace(f" {TAG}", "")])[0])
    assert (found.ids, found.ends) == (bare.ids, bare.ends)
    assert [found.ids[end] for end in found.ends] == [tokenizer.encode(TAG)[-1]] * 2
    for odd in (f"{TAG}\n{TAG}", "  \n \n  ", f"a  {TAG} {TAG}", "\n\n\n"):
        assert model.encode(QUESTION, completions([odd])[0]).ends


def test_skywork_judges_at_each_newline_by_its_value_head(skywork):
    tokenizer, model = AutoTokenizer.from_pretrained(skywork), Qwen2Model.from_pretrained(skywork)
    weights = {}
    for file in skywork.glob("*.safetensors"):
        weights |= load_file(file)
    weight, bias = (weights[f"v_head.summary.{name}"] for name in ("weight", "bias"))

    def naive(text):
        ids = tokenizer.encode(tokenizer.bos_token + QUESTION + "\n")
        flags = [0] * len(ids)
        for step in text.split("\n"):
            tokens = (tokenizer.encode(spaced(tokenizer, step)) if step else []) + [tokenizer.encode("\n")[-1]]
            ids += tokens
            flags += [0] * (len(tokens) - 1) + [1]
        with torch.no_grad():
            values = (model(torch.tensor([ids])).last_hidden_state[0] @ weight.T + bias)[:, 0].sigmoid()
        return values[torch.tensor(flags) == 1].tolist()

    check(load_reward_model(skywork, batch_size=2), naive)


def conversation(tokenizer, text):
    turns = [("system", PROMPTS["boxed"]), ("user", QUESTION), ("assistant", text)]
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt")["input_ids"]


def qwen_head(folder):
    weights = load_file(folder / "model.safetensors")
    inner, outer = torch.nn.Linear(32, 32), torch.nn.Linear(32, len(weights["score.2.bias"]))
    for layer, number in ((inner, 0), (outer, 2)):
        layer.load_state_dict({name: weights[f"score.{number}.{name}"] for name in ("weight", "bias")})
    return torch.nn.Sequential(inner, torch.nn.ReLU(), outer)


def test_qwen_prm_judges_at_its_separator(qwen_prm):
    tokenizer, model, head = (
        AutoTokenizer.from_pretrained(qwen_prm),
        Qwen2Model.from_pretrained(qwen_prm),
        qwen_head(qwen_prm),
    )

    def naive(text):
        ids = conversation(tokenizer, spaced(tokenizer, text).replace("\n\n", "<extra_0>") + "<extra_0>")
        with torch.no_grad():
            probabilities = head(model(ids).last_hidden_state).softmax(-1)[0, :, 1]
        return probabilities[ids[0] == tokenizer.encode("<extra_0>")[0]].tolist()

    check(load_reward_model(qwen_prm, batch_size=2), naive)
    (cut,) = scores(ProcessRewardModel(qwen_prm), ["a\n\nb <extra_0> c"])
    assert len(cut) == 2, "a separator that the model wrote ends no step"


def test_qwen_rm_judges_at_the_last_token(qwen_rm):
    tokenizer, model, head = (
        AutoTokenizer.from_pretrained(qwen_rm),
        Qwen2Model.from_pretrained(qwen_rm),
        qwen_head(qwen_rm),
    )
    for text, found in zip(TEXTS, scores(load_reward_model(qwen_rm, batch_size=3)), strict=True):
        with torch.no_grad():
            expected = head(model(conversation(tokenizer, spaced(tokenizer, text))).last_hidden_state)[0, -1].item()
        assert found == pytest.approx([expected], abs=2e-5)


@pytest.mark.parametrize("padding", ["none", "end of turn"])
def test_a_classifier_of_one_label_is_an_outcome_model(tmp_path, padding):
    folder = made.classifier(tmp_path / "rm")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), LlamaForSequenceClassification.from_pretrained(folder)
    if padding == "end of turn":  # transformers then reads the token before it
        config = json.loads((folder / "config.json").read_text())
        model.config.pad_token_id = config["pad_token_id"] = tokenizer.convert_tokens_to_ids("<|eot_id|>")
        (folder / "config.json").write_text(json.dumps(config))
    for text, found in zip(TEXTS, scores(load_reward_model(folder, batch_size=3)), strict=True):
        turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": spaced(tokenizer, text)}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        with torch.no_grad():
            assert found == pytest.approx([model(ids).logits[0, 0].item()], abs=2e-5)


def test_bf16_weights_give_log_odds_that_bf16_cannot_hold(llama):
    found = [x for steps in scores(ProcessRewardModel(llama, dtype="bfloat16")) for x in steps]
    exact = [x for steps in scores(ProcessRewardModel(llama)) for x in steps]
    assert found == pytest.approx(exact, abs=0.2)
    assert torch.tensor(found).tolist() == found, "they are float32"
    assert torch.tensor(found).bfloat16().float().tolist() != found


def test_config_architecture_or_name_tell(llama, mistral, qwen_prm, qwen_rm, skywork, tmp_path, tiny_teacher, caplog):
    cache = tmp_path / "models--RLHFlow--Llama3.1-8B-PRM-Mistral-Data" / "snapshots" / "0123"
    for folder, judge in (
        (llama, "rlhflow-deepseek"),
        (mistral, "math-shepherd"),
        (qwen_prm, "qwen-prm"),
        (qwen_rm, "qwen-rm"),
        (skywork, "skywork"),
        (made.classifier(tmp_path / "rm"), "classifier"),
        (made.llama(cache), "rlhflow-mistral"),
    ):
        assert judge_of(folder) == judge
        assert ProcessRewardModel(folder).protocol is PROTOCOLS[judge]
    assert not caplog.text
    assert judge_of(tiny_teacher) == "signs"
    assert "does not say how it judges, and is taken to judge lines by signs; choose one of signs, head" in caplog.text
    several = made.classifier(tmp_path / "several", num_labels=3)
    with pytest.raises(ValueError, match="of several labels is no reward model"):
        judge_of(several)
    config = json.loads((several / "config.json").read_text())
    (several / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen2ForTokenClassification"]}))
    with pytest.raises(ValueError, match="how a Qwen2ForTokenClassification judges is not known; choose one of signs,"):
        judge_of(several)


def test_a_protocol_of_ones_own(mistral):
    own = MathShepherd(separator="\n\n", before="Problem: ", after="\nSolution: ", name="mine")
    model = ProcessRewardModel(mistral, protocol=own)
    tokenizer = AutoTokenizer.from_pretrained(mistral)
    asked = f"Problem: {QUESTION}\nSolution: one {TAG}\n\ntwo {TAG}"
    assert model.encode(QUESTION, completions(["one\n\ntwo"])[0]).ids == tokenizer.encode(asked)
    assert len(scores(model, ["one\n\ntwo"])[0]) == 2


def test_what_is_no_model_of_a_protocol_is_refused_in_one_line(llama, mistral, qwen_prm, tmp_path, tiny_teacher):
    def refusal(path, protocol):
        with pytest.raises(ValueError, match=path.name) as error:
            scores(ProcessRewardModel(path, protocol=protocol), ["one\n\ntwo"])
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "the tokenizer has no chat template" in refusal(mistral, "rlhflow-deepseek")
    assert f"joins the step marker {TAG!r} with the text around it" in refusal(tiny_teacher, "math-shepherd")
    with pytest.raises(ValueError, match=r"model: its tokenizer splits '\+ -' into 3 tokens, not 2"):
        MathShepherd().signs("model", lambda text, add_special_tokens: {"input_ids": [1, 2, 3]})
    assert "joins the step marker '<extra_0>'" in refusal(
        made.qwen(tmp_path / "bare", "Qwen2ForProcessRewardModel", QWEN_PRM, tokenizer=made.llama_tokenizer()),
        "qwen-prm",
    )
    assert "the weight v_head.summary.weight of shape (1, 32) is not there" in refusal(
        made.qwen(tmp_path / "headless", "Qwen2ForPrmModel", {}), "skywork"
    )
    assert "score.2.weight of shape (1, 32) is of shape (2, 32)" in refusal(qwen_prm, "qwen-rm")
    assert "not in the model: 4, first score.0.bias" in refusal(qwen_prm, "skywork")
    assert "no token for the beginning of a text" in refusal(
        made.qwen(tmp_path / "no_begin", "Qwen2ForPrmModel", SKYWORK), "skywork"
    )
    assert "it is no LlamaForSequenceClassification with one label (weights missing: 1" in refusal(llama, "classifier")
    silent = made.llama(tmp_path / "silent")
    (silent / "chat_template.jinja").write_text(
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    )
    assert "chat template leaves turns out" in refusal(silent, "rlhflow-deepseek")


def test_texts_beyond_the_context_are_judged_within_it_and_counted(tmp_path, caplog):
    folder = made.llama(tmp_path / "short", max_position_embeddings=200)
    model = ProcessRewardModel(folder, protocol="rlhflow-deepseek", batch_size=2)
    long = "\n\n".join(["a = 5 - 1"] * 40)
    short, cut, far = scores(model, ["one\n\ntwo", long, "x " * 300])
    assert len(short) == 2
    assert 2 < len(cut) < 40
    assert far == []
    assert model.score([Problem("p", QUESTION, "4")], completions(["x " * 300]))[0].log_odds == NO_STEP
    assert "2 of 3 completions are longer than its context of 200 tokens; judged by what lies within: 1;" in caplog.text
    assert "with nothing there to judge, and so log-odds of -100: 1" in caplog.text
    assert (model.num_cut, model.num_unjudged) == (3, 2)
    assert caplog.text.count("context of") == 1


def test_what_cannot_be_judged_is_told_even_if_others_were_cut_before(tmp_path, caplog):
    folder = made.llama(tmp_path / "short", max_position_embeddings=200)
    model = ProcessRewardModel(folder, protocol="rlhflow-deepseek")
    for text in ("\n\n".join(["a = 5 - 1"] * 40), "x " * 300, "y " * 300):
        scores(model, [text])
    assert [line[-12:] for line in caplog.messages] == ["s of -100: 0", "s of -100: 1"]


@pytest.mark.parametrize("kind", ["qwen-rm", "classifier"])
def test_an_outcome_model_judges_an_overlong_solution_at_the_last_token_within(tmp_path, kind, caplog):
    """As a plain pass over the first tokens alone has it; without a token of the solution there is nothing to judge."""
    longest = 150
    if kind == "qwen-rm":
        folder = made.qwen(tmp_path / "rm", "Qwen2ForRewardModel", QWEN_RM)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"max_position_embeddings": longest}))
        decoder, head = Qwen2Model.from_pretrained(folder), qwen_head(folder)
    else:
        folder = made.classifier(tmp_path / "rm", max_position_embeddings=longest)
        whole = LlamaForSequenceClassification.from_pretrained(folder)
        decoder, head = whole.model, whole.score
    model = load_reward_model(folder, batch_size=2)
    long = "one + two = 5 - 1. " * 30
    ids = model.encode(QUESTION, completions([long])[0]).ids
    assert len(ids) > longest
    with torch.no_grad():
        expected = head(decoder(torch.tensor([ids[:longest]])).last_hidden_state)[0, -1].item()
    short, cut = scores(model, ["one\n\ntwo", long])
    assert cut == pytest.approx([expected], abs=2e-5)
    assert len(short) == 1
    assert "1 of 2 completions are longer than its context of 150 tokens; judged by what lies within: 1;" in caplog.text
    (nothing,) = model.score([Problem("p", QUESTION * 30, "4")], completions(["The answer is 4."]))
    assert nothing.log_odds == NO_STEP
    assert model.num_unjudged == 1


def test_a_classifier_passes_over_padding_where_it_cuts(tmp_path):
    folder = made.classifier(tmp_path / "rm")
    model = ProcessRewardModel(folder)
    text = model.encode(QUESTION, completions(["one + two " * 20])[0])
    padding = text.ids[-9]
    model.loaded.model.config.pad_token_id = padding
    last = max(t for t in range(len(text.ids) - 8) if text.ids[t] != padding)
    assert text.prompt_tokens < last < len(text.ids) - 9
    assert model.cut(text, len(text.ids) - 8).ends == [last]


def test_where_the_solution_starts_in_a_conversation(qwen_rm, tmp_path):
    for folder in (qwen_rm, made.classifier(tmp_path / "rm")):
        model = ProcessRewardModel(folder)
        for text in ("one + two", " assistant \n", "<|eot_id|> is 5 <|im_end|>", QUESTION):
            found = model.encode(QUESTION, completions([text])[0])
            tokenizer = model.loaded.tokenizer
            start = found.prompt_tokens
            assert tokenizer.decode(found.ids[:start]).strip().endswith(("assistant", "<|end_header_id|>"))
            assert tokenizer.decode(found.ids[start:]).strip().startswith(spaced(tokenizer, text).strip())
        assert model.encode(QUESTION, completions([""])[0]).prompt_tokens == 0, "there is none"
