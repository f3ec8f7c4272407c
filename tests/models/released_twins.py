"""The published programs of Llamba, MambaInLlama and M1, restated as plain float64 loops over *their* weights.

Written from their formulas with their names, their shapes and their quirks; nothing of the package is used.
"""

import math

import torch
from torch.nn.functional import silu, softplus


def llamba_logits(config, weights, ids):
    """(b, t) -> (b, t, v) of a Llamba."""
    w = {name: value.double() for name, value in weights.items()}
    mlp, x = config["mlp_cfg"], w["backbone.embedding.weight"][ids]
    for i in range(config["n_layer"]):
        p = f"backbone.layers.{i}."
        x = x + _discrete_mamba2(config, w, f"{p}mixer.", _norm(x, w[f"{p}input_layernorm.weight"]))
        x = x + _mlp(w, f"{p}mlp.", _norm(x, w[f"{p}post_attention_layernorm.weight"]), bias=mlp["bias"])
    x = _norm(x, w["backbone.final_layernorm.weight"])
    return x @ w["backbone.embedding.weight" if config["tie_embeddings"] else "lm_head.weight"].T


def hybrid_logits(base, mamba, weights, ids, *, scaled=False):
    """(b, t) -> (b, t, v) of a MambaInLlama or M1, in any layout of its weights."""
    w = {name: value.double() for name, value in weights.items()}
    x, eps = w["model.embed_tokens.weight"][ids], base["rms_norm_eps"]
    for i in range(mamba["n_layer"]):
        p = f"model.layers.{i}."
        normed = _norm(x, w[f"{p}input_layernorm.weight"], eps)
        if i in mamba["attn_layers"]:
            mixed = _attention(base, w, p, normed, scaled=scaled)
        elif "ngroups" in mamba["ssm_cfg"]:
            mixed = _mamba2(mamba, w, f"{p}mamba.", normed)
        else:
            mixed = _mamba1(mamba, w, f"{p}mamba.", normed)
        x = x + mixed
        x = x + _mlp(w, f"{p}mlp.", _norm(x, w[f"{p}post_attention_layernorm.weight"], eps))
    x = _norm(x, w["model.norm.weight"], eps)
    return x @ w["model.embed_tokens.weight" if base["tie_word_embeddings"] else "lm_head.weight"].T


def _norm(x, weight, eps=1e-5):
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _mlp(w, p, x, *, bias=False):
    def linear(name, value):
        return value @ w[f"{p}{name}.weight"].T + (w[f"{p}{name}.bias"] if bias else 0)

    return linear("down_proj", silu(linear("gate_proj", x)) * linear("up_proj", x))


def _conv(x, weight, bias):
    """Causal depthwise convolution of (b, t, c), tap by tap."""
    out = torch.zeros_like(x)
    taps = weight.shape[-1]
    for t in range(x.shape[1]):
        out[:, t] = bias
        for k in range(taps):
            if t - k >= 0:
                out[:, t] += weight[:, 0, taps - 1 - k] * x[:, t - k]
    return out


def _discrete_mamba2(config, w, p, u):
    ssm = config["ssm_cfg"]
    inner, v, qk, n = ssm["expand"] * config["d_model"], ssm["n_v_heads"], ssm["n_qk_heads"], ssm["d_state"]
    projected = u @ w[f"{p}in_proj.weight"].T + (w[f"{p}in_proj.bias"] if ssm["bias"] else 0)
    xBC, z, a = projected.split([inner + 2 * qk * n, inner, v], dim=-1)
    xBC = _conv(xBC, w[f"{p}conv1d.weight"], w[f"{p}conv1d.bias"])
    if ssm["activation"] == "silu":
        xBC = silu(xBC)
    x, B, C = xBC.split([inner, qk * n, qk * n], dim=-1)
    state, y = torch.zeros(u.shape[0], v, inner // v, n, dtype=u.dtype), torch.zeros_like(x)
    for t in range(u.shape[1]):
        for h in range(v):
            own = slice(h * (inner // v), (h + 1) * (inner // v))
            group = h // (v // qk)
            pair = slice(group * n, (group + 1) * n)
            alpha = torch.sigmoid(-a[:, t, h])[:, None, None]
            state[:, h] = alpha * state[:, h] + x[:, t, own][:, :, None] * B[:, t, pair][:, None, :]
            y[:, t, own] = (state[:, h] * C[:, t, pair][:, None, :]).sum(-1) + w[f"{p}D"][h] * x[:, t, own]
    gated = y * silu(z if ssm["bias"] else z + w[f"{p}z_bias"])
    return gated @ w[f"{p}out_proj.weight"].T + (w[f"{p}out_proj.bias"] if ssm["bias"] else 0)


def _input(w, p):
    """The rows z | x | B | C | dt, from either layout."""
    if f"{p}in_proj.weight" in w:
        return w[f"{p}in_proj.weight"]
    names = ("in_proj_z", "in_proj_x", "B_proj", "C_proj", "dt_proj_down")
    return torch.cat([w[f"{p}{name}.weight"] for name in names])


def _mamba1(mamba, w, p, u):
    ssm, d_xb = mamba["ssm_cfg"], mamba["d_xb"]
    inner = mamba["d_inner"] or ssm["expand"] * mamba["d_model"]
    n, rank = ssm.get("d_state", 16), ssm.get("dt_rank", math.ceil(mamba["d_model"] / 16))
    repeats = (inner // n) // (d_xb // n)

    def repeat(value):  # chunk g of the result is chunk g // repeats
        return torch.cat([value[..., (g // repeats) * n :][..., :n] for g in range(inner // n)], dim=-1)

    z, x, B, C, dt = (u @ _input(w, p).T).split([inner, d_xb, d_xb, inner, rank], dim=-1)
    B = repeat(B)
    first = ssm.get("repeat_kv_before_conv", True)
    x = repeat(x) if first else x
    x = silu(_conv(x, w[f"{p}conv1d.weight"], w[f"{p}conv1d.bias"]))
    x = x if first else repeat(x)
    bias = w[f"{p}dt_proj.bias"]
    dt = softplus(dt @ w[f"{p}dt_proj.weight"].T + bias + bias)  # once in the layer, once more in the scan
    A = -torch.exp(w[f"{p}A_log"])
    state, y = torch.zeros(u.shape[0], inner, n, dtype=u.dtype), torch.zeros_like(x)
    for t in range(u.shape[1]):
        for d in range(inner):
            group = slice(d // n * n, d // n * n + n)
            step = dt[:, t, d, None]
            state[:, d] = torch.exp(step * A[d]) * state[:, d] + step * B[:, t, group] * x[:, t, d, None]
            y[:, t, d] = (state[:, d] * C[:, t, group]).sum(-1) + w[f"{p}D"][d] * x[:, t, d]
    return (y * silu(z)) @ w[f"{p}out_proj.weight"].T


def _mamba2(mamba, w, p, u):
    heads, n, d_xb = mamba["ssm_cfg"]["ngroups"], mamba["ssm_cfg"]["d_state"], mamba["d_xb"]
    inner = heads * n
    repeats, biased = inner // d_xb, mamba["ssm_cfg"].get("bias", False)
    projected = u @ w[f"{p}in_proj.weight"].T + (w[f"{p}in_proj.bias"] if biased else 0)
    z, xBC, dt = projected.split([inner, inner + 2 * d_xb, heads], dim=-1)
    xBC = silu(_conv(xBC, w[f"{p}conv1d.weight"], w[f"{p}conv1d.bias"]))
    x, B, C = xBC.split([d_xb, d_xb, inner], dim=-1)
    dt, a = softplus(dt + w[f"{p}dt_bias"]), -torch.exp(w[f"{p}A_log"])
    state, y = torch.zeros(u.shape[0], heads, n, n, dtype=u.dtype), torch.zeros_like(z)
    for t in range(u.shape[1]):
        for h in range(heads):
            own, kv = slice(h * n, h * n + n), slice(h // repeats * n, h // repeats * n + n)
            step = dt[:, t, h, None, None]
            new = step * x[:, t, kv][:, :, None] * B[:, t, kv][:, None, :]
            state[:, h] = torch.exp(step * a[h]) * state[:, h] + new
            y[:, t, own] = (state[:, h] * C[:, t, own][:, None, :]).sum(-1) + w[f"{p}D"][h] * x[:, t, kv]
    gated = (y * silu(z)).unflatten(-1, (heads, n))
    normed = gated * torch.rsqrt(gated.square().mean(-1, keepdim=True) + 1e-5)
    out = (normed.flatten(-2) * w[f"{p}norm.weight"]) @ w[f"{p}out_proj.weight"].T
    return out + (w[f"{p}out_proj.bias"] if biased else 0)


def _attention(base, w, p, u, *, scaled):
    heads, kv_heads = base["num_attention_heads"], base["num_key_value_heads"]
    width = base["hidden_size"] // heads
    if f"{p}mha.in_proj.weight" in w:
        rows, out = w[f"{p}mha.in_proj.weight"], w[f"{p}mha.out_proj.weight"]
    else:
        rows = torch.cat([w[f"{p}self_attn.{name}_proj.weight"] for name in "qkv"])
        out = w[f"{p}self_attn.o_proj.weight"]
    q, k, v = (u @ rows.T).split([heads * width, kv_heads * width, kv_heads * width], dim=-1)
    angles = torch.arange(u.shape[1])[:, None] * _frequencies(base, width, scaled=scaled)
    y = torch.zeros_like(q)
    for h in range(heads):
        kv = h // (heads // kv_heads)
        own, shared = slice(h * width, h * width + width), slice(kv * width, kv * width + width)
        scores = _rotated(q[..., own], angles) @ _rotated(k[..., shared], angles).mT / math.sqrt(width)
        future = torch.ones(u.shape[1], u.shape[1]).triu(1).bool()
        y[..., own] = scores.masked_fill(future, -math.inf).softmax(-1) @ v[..., shared]
    return y @ out.T


def _rotated(x, angles):
    one, two = x.chunk(2, dim=-1)
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], dim=-1)


def _frequencies(base, width, *, scaled):
    made = []
    for i in range(0, width, 2):
        frequency, rope = base["rope_theta"] ** (-i / width), base["rope_scaling"]
        if scaled:  # the llama3 rule
            wavelength, old = 2 * math.pi / frequency, rope["original_max_position_embeddings"]
            low, high = old / rope["low_freq_factor"], old / rope["high_freq_factor"]
            smooth = (old / wavelength - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"])
            if wavelength > low:
                frequency /= rope["factor"]
            elif wavelength > high:
                frequency *= (1 - smooth) / rope["factor"] + smooth
        made.append(frequency)
    return torch.tensor(made, dtype=torch.float64)
