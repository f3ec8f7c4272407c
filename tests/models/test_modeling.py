"""The student against stock models, and its ways of running against each other."""

import functools
import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from lit_thinkfast.mixers import MIXERS
from lit_thinkfast.models import HybridCache, HybridConfig, HybridForCausalLM, convert

FAMILIES = ("llama", "llama_bias", "llama3_rope", "mistral", "qwen2", "qwen3")


def assert_close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_attention_equals_the_stock_model(helpers, family):
    teacher = helpers.teacher(family, torch.float64)
    student = convert(teacher, mixer="attention")
    assert set(student.state_dict()) == set(teacher.state_dict())
    ids = helpers.tokens(2, 19)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    for attention_mask in (None, mask):
        positions = (mask.cumsum(1) - 1).clamp_min(0) if attention_mask is not None else None
        expected = teacher(
            ids, attention_mask=attention_mask, position_ids=positions, labels=ids, output_hidden_states=True
        )
        actual = student(ids, attention_mask=attention_mask, labels=ids, output_hidden_states=True)
        real = mask.bool() if attention_mask is not None else torch.ones_like(mask).bool()
        assert_close(actual.logits[real], expected.logits[real], 1e-6)
        if attention_mask is None:
            assert_close(actual.loss, expected.loss, 1e-6)
        assert len(actual.hidden_states) == len(expected.hidden_states) == 4
        for a, b in zip(actual.hidden_states, expected.hidden_states, strict=True):
            assert_close(a[real], b[real], 1e-6)
    assert_close(student.model.norm(actual.pre_norm_hidden_state), actual.hidden_states[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_all_attention_generates_as_the_stock_model(helpers, family):
    teacher = helpers.teacher(family)
    student = convert(teacher, mixer="attention")
    ids = helpers.tokens(2, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    expected = teacher.generate(ids, **options)
    assert torch.equal(student.generate(ids, **options), expected)
    assert torch.equal(student.generate(ids, **options, num_beams=2), teacher.generate(ids, **options, num_beams=2))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["stock", "preallocated", "own"])
def test_cached_decoding_equals_the_full_forward(helpers, layout, family, kind):
    student = helpers.student(layout, torch.float64, family)
    ids = helpers.tokens(2, 23)
    expected = student(ids, use_cache=False).logits
    cache = None
    if kind == "stock":
        cache = DynamicCache(config=student.config)
    elif kind == "preallocated":
        cache = HybridCache(student.config, batch_size=2, max_length=23, dtype=torch.float64)
    steps = []
    with torch.no_grad():
        for start, end in [(0, 7), (7, 8), (8, 12), *((i, i + 1) for i in range(12, 23))]:
            out = student(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    assert_close(torch.cat(steps, 1), expected, 1e-6 if family == "qwen3" else 1e-7)
    if kind != "stock":
        assert cache.get_seq_length() == 23


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_packed_documents_equal_separate_ones(helpers, layout, family):
    student = helpers.student(layout, torch.float64, family)
    student.train()
    lengths = [[5, 1, 9, 2], [3, 14]]
    ids = helpers.tokens(2, 17)
    seq_idx = torch.stack([torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in lengths])
    weights = torch.randn(2, 17, 50, dtype=torch.float64)
    packed = student(ids, seq_idx=seq_idx).logits
    (packed * weights).sum().backward()
    packed_gradients = {name: p.grad for name, p in student.named_parameters()}
    student.zero_grad()
    for row, sizes in enumerate(lengths):
        edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        for start, end in itertools.pairwise(edges):
            alone = student(ids[row : row + 1, start:end]).logits
            assert_close(packed[row : row + 1, start:end], alone, 1e-7)
            (alone * weights[row : row + 1, start:end]).sum().backward()
    for name, parameter in student.named_parameters():
        assert_close(packed_gradients[name], parameter.grad, 1e-6)


def test_documents_by_mask_and_one_by_one_agree(helpers):
    from lit_thinkfast.models.attention import Visibility, attend, visibility

    query, key, value = (torch.randn(2, heads, 12, 8, dtype=torch.float64) for heads in (4, 2, 2))
    seq_idx = (torch.rand(2, 12) < 0.3).cumsum(1)
    one_by_one = visibility(queries=12, past=0, device=torch.device("cpu"), seq_idx=seq_idx)
    same = seq_idx[:, None, :, None] == seq_idx[:, None, None, :]
    by_mask = Visibility(mask=same & torch.ones(12, 12, dtype=torch.bool).tril(), causal=False)
    assert_close(attend(query, key, value, one_by_one, scale=0.3), attend(query, key, value, by_mask, scale=0.3))


def test_a_kernel_for_documents_is_given_all_rows_end_to_end(helpers, monkeypatch):
    """flash-attn itself needs CUDA; here attention by its definition stands in, to see what it is called with."""
    from lit_thinkfast.mixers import kernels
    from lit_thinkfast.models import attention

    def flash(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p, softmax_scale, causal):
        assert (causal, dropout_p) == (True, 0)
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        assert cu_seqlens_q.dtype == torch.int32
        assert max_seqlen_q == max_seqlen_k == cu_seqlens_q.diff().max()
        outs = []
        for a, b in itertools.pairwise(cu_seqlens_q.tolist()):
            keys, values = (part[a:b].repeat_interleave(q.shape[1] // k.shape[1], dim=1) for part in (k, v))
            scores = torch.einsum("qhp,khp->hqk", q[a:b], keys) * softmax_scale
            scores = scores.masked_fill(~torch.ones(b - a, b - a, dtype=torch.bool).tril(), -torch.inf)
            outs.append(torch.einsum("hqk,khp->qhp", scores.softmax(-1), values))
        return torch.cat(outs)

    student = helpers.student("hybrid", torch.float64)
    ids, seq_idx = helpers.tokens(2, 17), torch.tensor([[0] * 5 + [1] * 12, [0] * 3 + [1] * 8 + [2] * 6])
    expected = student(ids, seq_idx=seq_idx).logits
    called = []
    monkeypatch.setattr(
        attention,
        "find_varlen_attention",
        lambda *_: called.append(1) or functools.partial(kernels._varlen_attention, flash),
    )
    assert_close(student(ids, seq_idx=seq_idx).logits, expected, 1e-7)
    assert called


def test_under_autocast_packed_attention_is_asked_for_in_sixteen_bits(helpers, monkeypatch):
    from lit_thinkfast.models import attention

    asked = []
    monkeypatch.setattr(attention, "find_varlen_attention", lambda device, dtype: asked.append(dtype))
    student = helpers.student("hybrid")
    with torch.autocast("cpu", torch.bfloat16):
        student(helpers.tokens(1, 9), seq_idx=torch.tensor([[0] * 4 + [1] * 5]))
    assert asked == [torch.bfloat16]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(helpers, layout, family, side):
    student = helpers.student(layout, torch.float64, family)
    lengths = [11, 4, 1]
    ids, mask = torch.zeros(3, 11, dtype=torch.long), torch.zeros(3, 11, dtype=torch.long)
    for row, length in enumerate(lengths):
        where = slice(11 - length, 11) if side == "left" else slice(0, length)
        ids[row, where], mask[row, where] = helpers.tokens(length, seed=row), 1
    logits = student(ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    for row, length in enumerate(lengths):
        alone = student(helpers.tokens(1, length, seed=row)).logits
        assert_close(logits[row][mask[row].bool()], alone[0], 1e-6)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("preallocated", [False, True])
def test_padded_batch_decodes_as_single_rows(helpers, layout, family, preallocated):
    student = helpers.student(layout, torch.float64, family)
    lengths, time = [6, 2], 9
    ids = torch.stack([helpers.tokens(6 + time, seed=row) for row in range(2)])
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, :4] = 0
    cache = HybridCache(student.config, 2, 6 + time, dtype=torch.float64) if preallocated else None
    with torch.no_grad():
        out = student(ids[:, :6], attention_mask=mask, past_key_values=cache, use_cache=True)
        logits = [out.logits]
        for t in range(6, 6 + time):
            mask = torch.cat([mask, mask.new_ones(2, 1)], 1)
            given = None if preallocated else mask
            out = student(ids[:, t : t + 1], attention_mask=given, past_key_values=out.past_key_values)
            logits.append(out.logits)
        logits = torch.cat(logits, 1)
        for row, length in enumerate(lengths):
            alone = student(ids[row : row + 1, 6 - length :], use_cache=False).logits
            assert_close(logits[row, 6 - length :], alone[0], 1e-6)


@pytest.mark.parametrize("sample", [False, True])
def test_save_load_generate(helpers, layout, tmp_path, sample):
    student = helpers.student(layout)
    student.generation_config.pad_token_id = 0
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is HybridForCausalLM
    assert isinstance(loaded.config, HybridConfig)
    assert loaded.config.layer_mixers == student.config.layer_mixers
    ids = helpers.tokens(2, 6)
    assert_close(loaded(ids).logits, student(ids).logits, 1e-6)
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    out = []
    for model in (student, loaded):
        torch.manual_seed(0)
        out.append(
            model.generate(
                ids, attention_mask=mask, max_new_tokens=9, do_sample=sample, num_return_sequences=1 + sample
            )
        )
    assert torch.equal(out[0], out[1])
    assert out[0].shape[0] == 2 + 2 * sample


def test_generate_agrees_with_and_without_cache(helpers, layout):
    student = helpers.student(layout)
    ids = helpers.tokens(2, 6)
    with_cache = student.generate(ids, max_new_tokens=9, do_sample=False)
    assert torch.equal(with_cache, student.generate(ids, max_new_tokens=9, do_sample=False, use_cache=False))
    cache = HybridCache(student.config, 2, 15)
    assert torch.equal(with_cache, student.generate(ids, max_new_tokens=9, do_sample=False, past_key_values=cache))


def test_beams_agree_with_and_without_cache(helpers, layout):
    student = helpers.student(layout)
    options = {"max_new_tokens": 8, "num_beams": 3, "do_sample": False}
    ids = helpers.tokens(2, 6)
    assert torch.equal(student.generate(ids, **options), student.generate(ids, **options, use_cache=False))


def test_gradient_checkpointing_changes_no_gradient(helpers, layout):
    student = helpers.student(layout).train()
    ids = helpers.tokens(2, 9)
    seq_idx = (torch.arange(9) >= 4).long().expand(2, 9)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            student.gradient_checkpointing_enable()
        student.zero_grad()
        student(ids, labels=ids, seq_idx=seq_idx).loss.backward()
        gradients.append([p.grad.clone() for p in student.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert_close(a, b, 1e-6)


def test_all_parameters_learn(helpers, layout):
    student = helpers.student(layout).train()
    ids = helpers.tokens(2, 9)
    student(ids, labels=ids).loss.backward()
    assert [name for name, p in student.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("mixer", sorted(MIXERS))
def test_small_types_keep_decays_in_float32(helpers, tmp_path, mixer):
    student = helpers.student(f"recurrent {mixer}")
    kept = MIXERS[mixer].full_precision
    exact = {n: p.clone() for n, p in student.named_parameters() if n.split(".mixer.")[-1] in kept}
    assert len(exact) == 3 * len(kept)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for model in (loaded, student.bfloat16()):
        for name, parameter in model.named_parameters():
            assert parameter.dtype == (torch.float32 if name in exact else torch.bfloat16)
        for name, value in exact.items():
            assert torch.equal(model.get_parameter(name), value)
    ids = helpers.tokens(2, 9)
    out = loaded.generate(ids, max_new_tokens=4, do_sample=False)
    assert out.shape == (2, 13)
    states = loaded(ids, use_cache=True).past_key_values.layers[0].recurrent_states[0]
    assert states.dtype == torch.float32


def test_the_kernel_is_chosen_for_a_run_and_not_saved(helpers, layout, tmp_path):
    """The loops in float64 are the twin of the whole model, prefill and decoding."""
    student = helpers.student(layout)
    student.save_pretrained(tmp_path / "a")
    slow = AutoModelForCausalLM.from_pretrained(tmp_path / "a", kernel="reference")
    if layout != "attention":
        assert slow.model.layers[0].mixer.kernel == slow.model.layers[0].mixer.conv1d.kernel == "reference"
    ids = helpers.tokens(2, 9)
    assert_close(slow(ids).logits, student(ids).logits, 1e-4)
    assert torch.equal(slow.generate(ids, max_new_tokens=5, do_sample=False),
                       student.generate(ids, max_new_tokens=5, do_sample=False))  # fmt: skip
    slow.save_pretrained(tmp_path / "b")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "b").config.kernel == "auto"
    with pytest.raises(ValueError, match="unknown kernel 'cuda'"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "b", kernel="cuda")


def test_autocast_runs_forward_backward_and_decoding(helpers, layout):
    student = helpers.student(layout)
    ids = helpers.tokens(2, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        student(ids, labels=ids).loss.backward()
        out = student.generate(ids, max_new_tokens=4, do_sample=False)
    assert out.shape == (2, 13)
    assert all(torch.isfinite(p.grad).all() for p in student.parameters())


def test_logits_to_keep(helpers):
    student = helpers.student()
    ids = helpers.tokens(2, 9)
    full = student(ids).logits
    assert_close(student(ids, logits_to_keep=2).logits, full[:, -2:], 1e-6)
    assert_close(student(ids, logits_to_keep=torch.tensor([3, 5])).logits, full[:, [3, 5]], 1e-6)


def test_fresh_model_has_the_published_initial_steps():
    config = HybridConfig(
        vocab_size=20, hidden_size=256, intermediate_size=8, num_hidden_layers=1, num_attention_heads=64,
        layer_mixers=["mamba2"],
    )  # fmt: skip
    mixer = HybridForCausalLM(config).model.layers[0].mixer
    steps = torch.nn.functional.softplus(mixer.dt_bias)
    assert 1e-3 * 0.99 <= steps.min() < 0.01 < steps.max() <= 0.1 * 1.01
    rates = mixer.A_log.exp()
    assert 1 <= rates.min() < 4 < 12 < rates.max() <= 16
    assert torch.equal(mixer.D, torch.ones(64))
    assert mixer.in_proj.weight.abs().max() <= 256**-0.5


def test_bad_calls_say_what_is_wrong(helpers):
    student = helpers.student()
    ids = helpers.tokens(1, 4)
    cache = student(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="cannot continue a cache"):
        student(ids, past_key_values=cache, seq_idx=torch.zeros_like(ids))
    with pytest.raises(ValueError, match="attention_mask has shape"):
        student(ids, attention_mask=torch.ones(1, 7))
    with pytest.raises(ValueError, match="exactly one"):
        student()


def test_positions_that_restart_mark_documents(helpers, layout):
    """What ``DataCollatorWithFlattening`` sends; the stock class is the twin."""
    student = helpers.student(layout, torch.float64)
    first, second = helpers.tokens(1, 5), helpers.tokens(1, 4, seed=1)
    position_ids = torch.tensor([[*range(5), *range(4)]])
    packed = student(torch.cat([first, second], 1), position_ids=position_ids, use_cache=False).logits
    assert_close(packed[:, :5], student(first, use_cache=False).logits)
    assert_close(packed[:, 5:], student(second, use_cache=False).logits)
    teacher = helpers.teacher(dtype=torch.float64)
    stock = teacher(torch.cat([first, second], 1), position_ids=position_ids, use_cache=False).logits
    assert_close(stock[:, 5:], teacher(second, use_cache=False).logits, 1e-6)


@pytest.mark.parametrize("preallocated", [False, True])
def test_padding_may_come_one_token_at_a_time(helpers, layout, preallocated):
    student = helpers.student(layout, torch.float64)
    ids = helpers.tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    cache = HybridCache(student.config, 2, 16, device="cpu", dtype=torch.float64) if preallocated else None
    steps = []
    with torch.inference_mode():
        expected = student(ids, attention_mask=mask).logits
        for t in range(9):
            out = student(ids[:, t : t + 1], attention_mask=mask[:, : t + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    assert_close(torch.cat(steps, 1)[mask.bool()], expected[mask.bool()])


def test_padding_between_real_tokens_is_refused_where_it_would_be_wrong(helpers):
    ids = helpers.tokens(1, 8)
    mask = torch.tensor([[0, 1, 1, 0, 0, 1, 1, 1]])
    for layout in ("hybrid", "recurrent"):
        student = helpers.student(layout)
        with pytest.raises(ValueError, match="padding between real tokens"):
            student(ids, attention_mask=mask)
        cache = student(ids[:, :3], attention_mask=mask[:, :3], use_cache=True).past_key_values
        with pytest.raises(ValueError, match="padding between real tokens"):
            student(ids[:, 3:], attention_mask=mask, past_key_values=cache)
    helpers.student("attention")(ids, attention_mask=mask)


def test_a_second_turn_follows_one_padded_at_its_end(helpers, layout):
    student = helpers.student(layout, torch.float64)
    ids = helpers.tokens(1, 9)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 1, 1, 1]])
    with torch.inference_mode():
        cache = student(ids[:, :6], attention_mask=mask[:, :6], use_cache=True).past_key_values
        second = student(ids[:, 6:], attention_mask=mask, past_key_values=cache).logits
        expected = student(torch.cat([ids[:, :4], ids[:, 6:]], 1)).logits[:, 4:]
    assert_close(second, expected)


def test_what_states_cannot_do_is_refused(helpers, layout):
    student = helpers.student(layout)
    ids = helpers.tokens(1, 7)
    plain = student.generate(ids, max_new_tokens=8, do_sample=False)
    if layout == "attention":
        assert torch.equal(student.generate(ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3), plain)
    else:
        with pytest.raises(ValueError, match="stateful"):
            student.generate(ids, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    with pytest.raises(ValueError, match="cache_implementation 'static' is not available"):
        student.generate(ids, max_new_tokens=2, cache_implementation="static")
    with pytest.raises(ValueError, match="output_attentions is not available"):
        student(ids, output_attentions=True)
    with pytest.raises(ValueError, match="attention_mask is a dict"):
        student(ids, attention_mask={"full_attention": None})
