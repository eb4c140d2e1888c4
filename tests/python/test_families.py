"""Every family, in variants that have no published numbers, against models written in Python."""

import json
import re
import subprocess

import pytest
import torch

import reference_models as reference
from train_runs import MDN, ROOT

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "expand_v": 2,
    "intermediate_size": 40,
}
HEADLESS = {k: v for k, v in TINY.items() if k not in ("head_dim", "expand_v")}
MAMBA2 = {
    "model_type": "mamba2",
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 12,
    "head_dim": 16,
    "norm_eps": 1e-5,
}
ATTENTION = {
    "layers": [1],
    "num_heads": 4,
    "num_kv_heads": 2,
    "qkv_bias": True,
    "window_size": 9,
}

VARIANTS = {
    "mdn_grouped": {**TINY, "model_type": "momentum_deltanet", "num_v_heads": 6},
    "mdn_bare": {
        **TINY,
        "model_type": "momentum_deltanet",
        "use_gate": False,
        "use_short_conv": False,
        "use_output_correction": False,
        "use_p_times_alpha": False,
        "min_log_mu": None,
    },
    "mdn_low_rank_tied": {
        **TINY,
        "model_type": "momentum_deltanet",
        "use_lora_gate": True,
        "lora_gate_rank": 5,
        "tie_word_embeddings": True,
        "min_log_mu": -0.3,
        "tau_factor": 4,
        "conv_size": 2,
        "pad_token_id": 3,
    },
    "mdn_hybrid": {**TINY, "model_type": "momentum_deltanet", "attn": ATTENTION},
    "mdn_two_kinds_of_attention": {
        **TINY,
        "model_type": "momentum_deltanet",
        "num_hidden_layers": 3,
        "attn": [{**ATTENTION, "layers": [2]}, {"layers": [0], "num_heads": 1}],
    },
    "gdn_grouped": {**TINY, "model_type": "gated_deltanet", "num_v_heads": 4},
    "gdn_negative": {
        **TINY,
        "model_type": "gated_deltanet",
        "allow_neg_eigval": True,
        "use_gate": False,
        "tie_word_embeddings": True,
    },
    "gdn_hybrid": {
        **TINY,
        "model_type": "gated_deltanet",
        "use_short_conv": False,
        "attn": {**ATTENTION, "window_size": None, "rope_theta": 500.0},
    },
    "comba_grouped": {**TINY, "model_type": "comba", "num_v_heads": 4},
    "comba_bare": {
        **TINY,
        "model_type": "comba",
        "use_output_gate": False,
        "use_short_conv": False,
        "attn": {"layers": [0], "num_heads": 2},
    },
    "gdn_odd": {  # sizes that no kernel's block divides
        "model_type": "gated_deltanet",
        "vocab_size": 101,
        "hidden_size": 30,
        "num_hidden_layers": 1,
        "num_heads": 3,
        "head_dim": 10,
        "expand_v": 1.5,
        "hidden_ratio": 3,
        "norm_eps": 1e-3,
        "conv_size": 3,
    },
    "kda_grouped": {**TINY, "model_type": "kda", "num_v_heads": 4, "expand_v": 0.5},
    "kda_bounded": {
        **TINY,
        "model_type": "kda",
        "safe_gate": True,
        "lower_bound": -5.0,
        "tie_word_embeddings": True,
    },
    "kda_hybrid": {
        **TINY,
        "model_type": "kda",
        "allow_neg_eigval": True,
        "use_short_conv": False,
        "attn": ATTENTION,
    },
    "mamba2_groups": {**MAMBA2, "n_groups": 2, "use_bias": True, "dt_limit": [0.3, 0.9]},
    "mamba2_norm_first": {
        **MAMBA2,
        "n_groups": 4,
        "norm_before_gate": True,
        "use_conv_bias": False,
        "tie_word_embeddings": True,
    },
    "mamba2_bare": {**MAMBA2, "rmsnorm": False, "residual_in_fp32": False, "conv_kernel": 2},
    "transformer_window": {
        **HEADLESS,
        "model_type": "transformer",
        "num_heads": 4,
        "num_kv_heads": 1,
        "window_size": 7,
        "qk_norm": True,
    },
    "transformer_bias": {
        **HEADLESS,
        "model_type": "transformer",
        "qkv_bias": True,
        "rope_theta": 100.0,
        "tie_word_embeddings": True,
        "pad_token_id": 5,
    },
}


def weight_shapes(folder):
    """Names and shapes as `mdn info --weights` lists them."""
    done = subprocess.run(
        [MDN, "info", folder, "--weights"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    shapes = {}
    for line in done.stdout.splitlines():
        found = re.match(r"(\S+)\s+\[([\d, ]+)\]", line)
        if found:
            shapes[found[1]] = [int(n) for n in found[2].split(",")]
    return shapes


def random_weights(shapes, seed):
    """Scales at which every part matters: matrices keep the size of activations."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if "norm" in name.rsplit(".", 2)[-2] or name.endswith(".D"):
            weights[name] = 1 + 0.1 * noise
        elif len(shape) == 1:
            weights[name] = 0.5 * noise - 0.5
        elif len(shape) == 3:
            weights[name] = 0.4 * noise
        else:
            weights[name] = noise / shape[1] ** 0.5
    return weights


def write_model(folder, config, seed=7, tokens=45):
    (folder / "config.json").write_text(json.dumps(config))
    weights = random_weights(weight_shapes(folder), seed)
    for value in weights.values():
        value.requires_grad_(True)
    generator = torch.Generator().manual_seed(seed + 1)
    ids = torch.randint(config["vocab_size"], (2, tokens), generator=generator)
    value = reference.loss(config, weights, ids)
    value.backward()
    out = reference.logits(config, weights, ids).detach()
    golden = {
        "input_ids": ids.to(torch.int32),
        "logits": out,
        "loss": value.detach().reshape(1),
        "decode_logits": out[:, -9:],
    }
    for name, weight in weights.items():
        golden[f"grad.{name}"] = (
            torch.zeros_like(weight) if weight.grad is None else weight.grad
        )
    reference.write_safetensors(folder / "weights.safetensors", weights)
    reference.write_safetensors(folder / "golden.safetensors", golden)


def verify(folder, *flags):
    return subprocess.run(
        [MDN, "verify", folder, *flags], capture_output=True, text=True
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_variant(tmp_path, name):
    write_model(tmp_path, VARIANTS[name])
    # float64 against float64: rounding of 1e-16 through a few thousand operations
    done = verify(
        tmp_path,
        "--dtype",
        "float64",
        "--tolerance",
        "1e-10",
        "--gradient-tolerance",
        "1e-9",
        "--all",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    done = verify(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("family", ["mdn", "mdn_hybrid", "gdn", "comba", "transformer"])
def test_the_reference_itself(family):
    """The Python models give the published code's logits."""
    folder = ROOT / "tests" / "data" / "goldens" / family
    config = json.loads((folder / "config.json").read_text())
    weights = reference.read_safetensors(folder / "weights.safetensors")
    golden = reference.read_safetensors(folder / "golden.safetensors")
    weights = {k: v.double() for k, v in weights.items()}
    want = golden["logits"].double()
    got = reference.logits(config, weights, golden["input_ids"].long())
    # the goldens are float32
    assert (got - want).norm() < 2e-6 * want.norm()
