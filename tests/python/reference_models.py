"""The families' forward passes written token by token in float64, straight from their definitions.

Independent of the program under test: it shares no code with it, so that a variant of a model which
has no published numbers (other heads, gates, windows) can be compared with it, gradients included.
A model is its config (the published keys) and a dict of float64 tensors by published name.
"""

import json
import math
import struct

import torch
import torch.nn.functional as F

L2_EPS = 1e-6


def rms_norm(x, weight, eps):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def l2norm(x):
    return x / torch.sqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def short_conv(x, weight, bias=None):
    """x [B, T, C], weight [C, 1, W]: silu of the causal depthwise convolution."""
    width = weight.shape[-1]
    padded = F.pad(x, (0, 0, width - 1, 0))
    y = sum(padded[:, i : i + x.shape[1]] * weight[:, 0, i] for i in range(width))
    return F.silu(y if bias is None else y + bias)


def heads_of(config, key_default=256, expand_default=2):
    H = config.get("num_heads", 6)
    HV = config.get("num_v_heads") or H
    K = config.get("head_dim", key_default)
    return H, HV, K, int(K * config.get("expand_v", expand_default))


def qkv(w, x, config, H, HV, K, V):
    out = []
    for name, n, d in (("q", H, K), ("k", H, K), ("v", HV, V)):
        y = x @ w[f"{name}_proj.weight"].T
        if config.get("use_short_conv", True):
            y = short_conv(y, w[f"{name}_conv1d.weight"])
        else:
            y = F.silu(y)
        out.append(y.unflatten(-1, (n, d)))
    return out


def spread(x, group):
    """Each query/key head once for every value head that reads it."""
    return x.repeat_interleave(group, 2)


def delta_output(w, x, o, eps, gate):
    """RMSNorm over V, the gate where there is one, the output projection. o [B, T, HV, V]."""
    y = rms_norm(o, w["o_norm.weight"], eps)
    if "g_proj.weight" in w:
        y = y * gate((x @ w["g_proj.weight"].T).unflatten(-1, o.shape[2:]))
    elif "g_proj.0.weight" in w:
        g = x @ w["g_proj.0.weight"].T @ w["g_proj.1.weight"].T + w["g_proj.1.bias"]
        y = y * gate(g.unflatten(-1, o.shape[2:]))
    return y.flatten(2) @ w["o_proj.weight"].T


def momentum_deltanet(config, w, x):
    H, HV, K, V = heads_of(config)
    q, k, v = qkv(w, x, config, H, HV, K, V)
    if config.get("use_output_correction", True):
        q = q - w["D_log"].exp()[:, None] * k
    q, k = spread(l2norm(q), HV // H), spread(l2norm(k), HV // H)

    def per_value_head(p):
        return p.repeat_interleave(HV // H)

    log_mu = -per_value_head(w["Mu_log"]).exp() * F.softplus(
        x @ w["m_proj.weight"].T + w["mu_bias"]
    )
    floor = config.get("min_log_mu", -2.0)
    if floor is not None:
        log_mu = log_mu.clamp_min(floor)
    mu = log_mu.exp()
    tau = math.sqrt(config["hidden_size"] / config.get("tau_factor", 1))
    eta = 1 + torch.tanh(x @ w["e_proj.weight"].T / tau)
    theta = torch.atan(eta * per_value_head(w["log_factor"]).exp())
    beta = theta.sin() ** 2 * torch.sigmoid(x @ w["b_proj.weight"].T)
    decay = per_value_head(w["A_log"]).exp() * F.softplus(
        x @ w["a_proj.weight"].T + w["dt_bias"]
    )
    alpha = theta.cos() ** 2 * torch.exp(-decay)
    pi = alpha if config.get("use_p_times_alpha", True) else torch.ones_like(alpha)

    B, T = x.shape[:2]
    S = x.new_zeros(B, HV, K, V)
    M = torch.zeros_like(S)
    outputs = []
    for t in range(T):

        def gate(g):
            return g[:, t, :, None, None]

        kt, vt = k[:, t, :, :, None], v[:, t, :, None, :]
        r = vt - gate(pi) * (S * kt).sum(2, keepdim=True)
        M = gate(mu) * M - gate(eta) * kt * r
        S = gate(alpha) * S - gate(beta) * M
        outputs.append((S * q[:, t, :, :, None]).sum(2) / math.sqrt(K))
    return delta_output(
        w, x, torch.stack(outputs, 1), config.get("norm_eps", 1e-6), torch.sigmoid
    )


def delta_rule(q, k, v, decay, beta, p):
    """S <- decay S; S <- S + beta k (v - Sᵀ p)ᵀ; o = Sᵀ q / sqrt(K). decay [B, T, HV, K or 1]."""
    S = q.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    outputs = []
    for t in range(q.shape[1]):
        S = decay[:, t, :, :, None] * S
        error = v[:, t, :, None, :] - (S * p[:, t, :, :, None]).sum(2, keepdim=True)
        S = S + beta[:, t, :, None, None] * k[:, t, :, :, None] * error
        outputs.append((S * q[:, t, :, :, None]).sum(2) / math.sqrt(q.shape[3]))
    return torch.stack(outputs, 1)


def gated_deltanet(config, w, x):
    H, HV, K, V = heads_of(config)
    q, k, v = qkv(w, x, config, H, HV, K, V)
    q, k = spread(l2norm(q), HV // H), spread(l2norm(k), HV // H)
    log_decay = -w["A_log"].exp() * F.softplus(x @ w["a_proj.weight"].T + w["dt_bias"])
    beta = torch.sigmoid(x @ w["b_proj.weight"].T)
    if config.get("allow_neg_eigval", False):
        beta = 2 * beta
    o = delta_rule(q, k, v, log_decay.exp()[..., None], beta, k)
    return delta_output(w, x, o, config.get("norm_eps", 1e-6), F.silu)


def comba(config, w, x):
    H, HV, K, V = heads_of(config)
    q, k, v = qkv(w, x, config, H, HV, K, V)
    p = k * torch.sigmoid(w["decay"])[:, None]
    q = q - w["D"][:, None] * p
    q, k, p = (spread(l2norm(y), HV // H) for y in (q, k, p))
    log_decay = -w["A_log"].exp() * F.softplus(x @ w["a_proj.weight"].T + w["dt_bias"])
    beta = torch.sigmoid(x @ w["b_proj.weight"].T)
    o = delta_rule(q, k, v, log_decay.exp()[..., None], beta, p)
    return delta_output(w, x, o, config.get("norm_eps", 1e-6), torch.sigmoid)


def kda(config, w, x):
    H, HV, K, V = heads_of(config, 128, 1)
    q, k, v = qkv(w, x, config, H, HV, K, V)
    q, k = spread(l2norm(q), HV // H), spread(l2norm(k), HV // H)
    f = (x @ w["f_proj.0.weight"].T @ w["f_proj.1.weight"].T + w["dt_bias"]).unflatten(
        -1, (HV, K)
    )
    rate, bound = w["A_log"].exp()[:, None], config.get("lower_bound")
    log_decay = -rate * F.softplus(f) if bound is None else bound * (rate * f).sigmoid()
    decay = log_decay.exp()
    beta = torch.sigmoid(x @ w["b_proj.weight"].T)
    if config.get("allow_neg_eigval", False):
        beta = 2 * beta
    o = delta_rule(q, k, v, decay, beta, k)
    return delta_output(w, x, o, config.get("norm_eps", 1e-6), torch.sigmoid)


def rotate(x, theta):
    """x [B, T, heads, d]: the halves rotated by position theta^(-2i/d)."""
    d = x.shape[-1]
    frequency = theta ** (-torch.arange(0, d, 2, dtype=x.dtype) / d)
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * frequency
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def attention(config, w, x):
    """`config`: the keys of an attention layer, with hidden_size."""
    heads = config.get("num_heads", 32)
    kv = config.get("num_kv_heads") or heads
    d = config["hidden_size"] // heads

    def project(name, n):
        y = x @ w[f"{name}_proj.weight"].T
        if config.get("qkv_bias"):
            y = y + w[f"{name}_proj.bias"]
        return y.unflatten(-1, (n, d))

    q, k, v = project("q", heads), project("k", kv), project("v", kv)
    if config.get("qk_norm"):
        q, k = (
            rms_norm(q, w["q_norm.weight"], 1e-5),
            rms_norm(k, w["k_norm.weight"], 1e-5),
        )
    theta = config.get("rope_theta", 10000.0)
    q, k = rotate(q, theta), rotate(k, theta)
    k, v = spread(k, heads // kv), spread(v, heads // kv)
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(d)
    T = x.shape[1]
    back = torch.arange(T)[:, None] - torch.arange(T)
    visible = back >= 0
    if config.get("window_size"):
        visible &= back < config["window_size"]
    weights = scores.masked_fill(~visible, -math.inf).softmax(-1)
    return torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2) @ w["o_proj.weight"].T


def mamba2(config, w, x):
    D, N, G = (
        config["hidden_size"],
        config.get("state_size", 128),
        config.get("n_groups", 1),
    )
    E, P = config.get("expand", 2) * D, config.get("head_dim", 64)
    H = E // P
    projected = x @ w["in_proj.weight"].T
    if config.get("use_bias"):
        projected = projected + w["in_proj.bias"]
    z, xbc, dt = projected.split([E, E + 2 * G * N, H], -1)
    xbc = short_conv(xbc, w["conv1d.weight"], w.get("conv1d.bias"))
    value, b, c = xbc.split([E, G * N, G * N], -1)
    value = value.unflatten(-1, (H, P))
    b, c = (y.unflatten(-1, (G, N)).repeat_interleave(H // G, 2) for y in (b, c))
    low, high = config.get("dt_limit", [0.0, math.inf])
    dt = F.softplus(dt + w["dt_bias"]).clamp(low, high)
    decay = torch.exp(-w["A_log"].exp() * dt)
    h = x.new_zeros(x.shape[0], H, P, N)
    outputs = []
    for t in range(x.shape[1]):
        h = decay[:, t, :, None, None] * h
        h = h + dt[:, t, :, None, None] * value[:, t, :, :, None] * b[:, t, :, None, :]
        outputs.append(
            (h * c[:, t, :, None, :]).sum(-1) + w["D"][:, None] * value[:, t]
        )
    y = torch.stack(outputs, 1).flatten(2)

    def norm(y):
        grouped = y.unflatten(-1, (G, E // G))
        grouped = grouped / torch.sqrt(
            grouped.square().mean(-1, keepdim=True) + config["norm_eps"]
        )
        return grouped.flatten(-2) * w["norm.weight"]

    if not config.get("rmsnorm", True):
        y = y * F.silu(z)
    elif config.get("norm_before_gate"):
        y = norm(y) * F.silu(z)
    else:
        y = norm(y * F.silu(z))
    y = y @ w["out_proj.weight"].T
    return y + w["out_proj.bias"] if config.get("use_bias") else y


MIXERS = {
    "momentum_deltanet": momentum_deltanet,
    "gated_deltanet": gated_deltanet,
    "comba": comba,
    "kda": kda,
    "mamba2": mamba2,
}


def below(weights, prefix):
    return {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}


def logits(config, weights, ids):
    """ids [B, T] -> [B, T, vocab]."""
    family, eps = config["model_type"], config.get("norm_eps", 1e-6)
    root = "backbone" if family == "mamba2" else "model"
    embeddings = weights[f"{root}.embeddings.weight"]
    if config.get("pad_token_id") is not None:
        pad = config["pad_token_id"]
        keep = (torch.arange(len(embeddings)) != pad)[:, None]
        embeddings = torch.where(keep, embeddings, embeddings.detach())
    x = embeddings[ids]
    attn = config.get("attn") or []
    specs = attn if isinstance(attn, list) else [attn]
    attention_keys = {layer: spec for spec in specs for layer in spec["layers"]}
    for i in range(config["num_hidden_layers"]):
        w = below(weights, f"{root}.layers.{i}.")
        if family == "mamba2":
            x = x + mamba2(
                config, below(w, "mixer."), rms_norm(x, w["norm.weight"], eps)
            )
            continue
        normed = rms_norm(x, w["attn_norm.weight"], eps)
        if family == "transformer":
            x = x + attention(config, below(w, "attn."), normed)
        elif i in attention_keys:
            keys = {**attention_keys[i], "hidden_size": config["hidden_size"]}
            x = x + attention(keys, below(w, "attn."), normed)
        else:
            x = x + MIXERS[family](config, below(w, "attn."), normed)
        normed = rms_norm(x, w["mlp_norm.weight"], eps)
        inner = F.silu(normed @ w["mlp.gate_proj.weight"].T) * (
            normed @ w["mlp.up_proj.weight"].T
        )
        x = x + inner @ w["mlp.down_proj.weight"].T
    final = "backbone.norm_f.weight" if family == "mamba2" else "model.norm.weight"
    x = rms_norm(x, weights[final], eps)
    tied = config.get("tie_word_embeddings")
    return (
        x
        @ (
            weights[f"{root}.embeddings.weight"] if tied else weights["lm_head.weight"]
        ).T
    )


def loss(config, weights, ids):
    out = logits(config, weights, ids)
    return F.cross_entropy(out[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def write_safetensors(path, tensors):
    types = {torch.float64: "F64", torch.float32: "F32", torch.int32: "I32"}
    header, offset, blobs = {}, 0, []
    for name, tensor in sorted(tensors.items()):
        blob = tensor.detach().contiguous().numpy().tobytes()
        header[name] = {
            "dtype": types[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(blob)],
        }
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def read_safetensors(path):
    types = {"F64": torch.float64, "F32": torch.float32, "I32": torch.int32}
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(
                bytearray(data[8 + size + begin : 8 + size + end]),
                dtype=types[entry["dtype"]],
            )
            tensors[name] = flat.reshape(entry["shape"])
    return tensors
