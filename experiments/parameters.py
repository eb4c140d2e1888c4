"""Parameters of a config.json, counted as the program lays them out. compare.py checks each count that it uses
against `mdn info`."""


def count(config: dict) -> int:
    """Parameters of a model of any family."""
    return MIXERS[config["model_type"]].total(config)


class _Blocks:
    """Families of blocks with a mixer and an MLP."""

    def __init__(self, mixer):
        self.mixer = mixer

    def total(self, c: dict) -> int:
        D, layers = c["hidden_size"], c["num_hidden_layers"]
        attn = c.get("attn") or {}
        attention_layers = len(attn.get("layers", []))
        block = 2 * D + 3 * D * intermediate_size(c)
        return (
            embeddings(c)
            + layers * block
            + (layers - attention_layers) * self.mixer(c)
            + (attention_layers and attention_layers * attention({**attn, "hidden_size": D}))
            + D
        )


class _Mamba2:
    def total(self, c: dict) -> int:
        D, E = c["hidden_size"], c["expand"] * c["hidden_size"]
        heads, states = E // c["head_dim"], c.get("n_groups", 1) * c["state_size"]
        conv = E + 2 * states
        layer = D + (2 * E + 2 * states + heads) * D + conv * c.get("conv_kernel", 4) + 3 * heads + E + D * E
        if c.get("use_conv_bias", True):
            layer += conv
        if c.get("use_bias", False):
            layer += 2 * E + 2 * states + heads + D
        return embeddings(c) + c["num_hidden_layers"] * layer + D


def embeddings(c: dict) -> int:
    return (1 if c.get("tie_word_embeddings", False) else 2) * c["vocab_size"] * c["hidden_size"]


def intermediate_size(c: dict) -> int:
    if c.get("intermediate_size"):
        return c["intermediate_size"]
    inner = int(c["hidden_size"] * (c.get("hidden_ratio") or 4) * 2 / 3)
    return 256 * ((inner + 255) // 256)


def _heads(c: dict, expand_v: float) -> tuple[int, int, int, int]:
    """Heads, value heads, channels of a key and of a value."""
    H = c["num_heads"]
    return H, c.get("num_v_heads") or H, c["head_dim"], int(c["head_dim"] * c.get("expand_v", expand_v))


def _projections(c: dict, H: int, HV: int, K: int, V: int) -> int:
    """q, k, v, o, their convolutions and the output's norm."""
    convolution = c.get("conv_size", 4) * (2 * H * K + HV * V) if c.get("use_short_conv", True) else 0
    return c["hidden_size"] * (2 * H * K + 2 * HV * V) + convolution + V


def momentum_deltanet(c: dict) -> int:
    D = c["hidden_size"]
    H, HV, K, V = _heads(c, 2)
    momentum = c.get("use_momentum", True)
    n = _projections(c, H, HV, K, V)
    n += 3 * HV * D + H + HV  # a, b, e; A_log, dt_bias
    if momentum:
        n += HV * D + H + HV  # m; Mu_log, mu_bias
    if c.get("use_alpha_cap", True) or c.get("use_beta_cap", True):
        n += H
    if c.get("use_output_correction", True):
        n += H
    if momentum and c.get("momentum_kind") == "quasi_hyperbolic":
        n += HV * D + HV
    if c.get("use_gate", True):
        rank = c.get("lora_gate_rank") or V
        n += D * rank + HV * V * (rank + 1) if c.get("use_lora_gate", False) else D * HV * V
    return n


def gated_deltanet(c: dict) -> int:
    H, HV, K, V = _heads(c, 2)
    gate = c["hidden_size"] * HV * V if c.get("use_gate", True) else 0
    return _projections(c, H, HV, K, V) + 2 * HV * c["hidden_size"] + 2 * HV + gate


def comba(c: dict) -> int:
    return gated_deltanet({**c, "use_gate": c.get("use_output_gate", True)}) + 2 * c["num_heads"]


def kda(c: dict) -> int:
    D = c["hidden_size"]
    H, HV, K, V = _heads(c, 1)
    decay = V * D + HV * K * V + HV + HV * K
    gate = V * D + HV * V * V + HV * V
    return _projections(c, H, HV, K, V) + HV * D + decay + gate


def attention(c: dict) -> int:
    D = c["hidden_size"]
    d = D // c["num_heads"]
    kv = d * (c.get("num_kv_heads") or c["num_heads"])
    bias = D + 2 * kv if c.get("qkv_bias", False) else 0
    return 2 * D * D + 2 * D * kv + bias + (2 * d if c.get("qk_norm", False) else 0)


MIXERS = {
    "momentum_deltanet": _Blocks(momentum_deltanet),
    "gated_deltanet": _Blocks(gated_deltanet),
    "comba": _Blocks(comba),
    "kda": _Blocks(kda),
    "transformer": _Blocks(attention),
    "mamba2": _Mamba2(),
}
