"""`mdn train` from outside: its losses against a trainer written apart, its files, its signals."""

import json
import math
import os
import resource
import shutil
import signal
import struct
import subprocess
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from train_runs import (
    GOLDEN,
    MDN,
    check_whole,
    checkpoints,
    content,
    make_data,
    mdn,
    metrics,
    write_config,
)

TEXT = "The river runs under the stone bridge; who walks there, walks alone.\n" * 40


def read_safetensors(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, t in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + at for at in t["data_offsets"])
            assert t["dtype"] == "F32"
            values = np.frombuffer(data[begin:end], "<f4").reshape(t["shape"])
            tensors[name] = torch.from_numpy(values.astype(np.float64))
    return tensors


def rms_norm(x, weight, eps=1e-6):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def mixer(x, w, prefix, config):
    """A momentum DeltaNet layer, token by token, from the published formulas."""
    D, H, K = config["hidden_size"], config["num_heads"], config["head_dim"]
    V = K * config["expand_v"]
    B, T, _ = x.shape

    def p(name):
        return w[prefix + name]

    def projected(name):
        y = (x @ p(f"{name}_proj.weight").T).transpose(1, 2)
        taps = p(f"{name}_conv1d.weight")
        y = F.conv1d(F.pad(y, (taps.shape[2] - 1, 0)), taps, groups=taps.shape[0])
        return F.silu(y.transpose(1, 2)).reshape(B, T, H, -1)

    q, k, v = projected("q"), projected("k"), projected("v")
    q = q - p("D_log").exp()[:, None] * k
    q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))

    log_mu = -p("Mu_log").exp() * F.softplus(x @ p("m_proj.weight").T + p("mu_bias"))
    mu = torch.maximum(log_mu, torch.tensor(config["min_log_mu"], dtype=x.dtype)).exp()
    tau = math.sqrt(D / config["tau_factor"])
    eta = 1 + torch.tanh(x @ p("e_proj.weight").T / tau)
    theta = torch.atan(eta * p("log_factor").exp())
    beta = theta.sin().square() * torch.sigmoid(x @ p("b_proj.weight").T)
    decay = p("A_log").exp() * F.softplus(x @ p("a_proj.weight").T + p("dt_bias"))
    alpha = theta.cos().square() * (-decay).exp()

    S = x.new_zeros(B, H, K, V)
    M = x.new_zeros(B, H, K, V)
    outputs = []
    for t in range(T):
        a, m, e, b = (g[:, t, :, None, None] for g in (alpha, mu, eta, beta))
        kt = k[:, t, :, :, None]
        r = v[:, t] - (S.transpose(2, 3) @ (a * kt))[..., 0]
        M = m * M - e * kt * r[:, :, None, :]
        S = a * S - b * M
        outputs.append((S.transpose(2, 3) @ q[:, t, :, :, None])[..., 0] / math.sqrt(K))
    o = rms_norm(torch.stack(outputs, 1), p("o_norm.weight"))
    o = o.reshape(B, T, H * V) * torch.sigmoid(x @ p("g_proj.weight").T)
    return o @ p("o_proj.weight").T


def loss_of(w, config, ids, targets):
    x = w["model.embeddings.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        h = rms_norm(x, w[layer + "attn_norm.weight"])
        x = x + mixer(h, w, layer + "attn.", config)
        h = rms_norm(x, w[layer + "mlp_norm.weight"])
        gate = F.silu(h @ w[layer + "mlp.gate_proj.weight"].T)
        h = gate * (h @ w[layer + "mlp.up_proj.weight"].T)
        x = x + h @ w[layer + "mlp.down_proj.weight"].T
    logits = rms_norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_losses_equal_a_trainer_written_apart(tmp_path):
    """float64; the split is one window long, so that both trainers see the same rows."""
    T, steps, warmup, top, floor = 20, 8, 3, 0.01, 0.2
    data = make_data(tmp_path, TEXT[: T + 1], "--val-fraction", "0")
    shard = next(data.glob("*train*")).read_bytes()
    tokens = torch.tensor(list(shard[64 : 64 + T + 1]))
    assert bytes(tokens.tolist()).decode() == TEXT[: T + 1]

    config = write_config(
        tmp_path,
        model=str(GOLDEN / "config.json"),
        init_from=str(GOLDEN / "weights.safetensors"),
        length=T,
        max_steps=steps,
        dtype="float64",
        learning_rate=top,
        warmup_fraction=None,
        warmup_steps=warmup,
        final_lr_fraction=floor,
        beta1=0.8,
        beta2=0.9,
        eps=1e-6,
        weight_decay=0.2,
        clip=0.5,
        log_every=1,
    )
    done = mdn("train", config)
    assert done.returncode == 0, done.stderr
    got = metrics(tmp_path / "out")

    shape = json.loads((GOLDEN / "config.json").read_text())
    w = read_safetensors(GOLDEN / "weights.safetensors")
    for tensor in w.values():
        tensor.requires_grad_()
    groups = [
        {"params": [t for t in w.values() if t.dim() > 1], "weight_decay": 0.2},
        {"params": [t for t in w.values() if t.dim() <= 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=0.0, betas=(0.8, 0.9), eps=1e-6)
    ids, targets = tokens[:-1].expand(2, T), tokens[1:].expand(2, T)
    for step in range(1, steps + 1):
        if step < warmup:
            rate = top * step / warmup
        else:
            share = (step - warmup) / (steps - warmup)
            rate = top * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share)))
        loss = loss_of(w, shape, ids, targets)
        adam.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(t.grad.square().sum() for t in w.values()))
        for tensor in w.values():
            tensor.grad *= min(1.0, 0.5 / norm.item())
        for group in adam.param_groups:
            group["lr"] = rate
        adam.step()
        line = got[step - 1]
        assert line["step"] == step
        # Gradients agree to about 1e-13; AdamW magnifies differences by at most lr / eps = 1e4,
        # so weights differ by 1e-9 a step at the worst, and in practice far less.
        assert line["loss"] == pytest.approx(loss.item(), rel=1e-8)
        assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-7)
        assert line["learning_rate"] == pytest.approx(rate, rel=1e-14)
    assert got[-1]["loss"] < 0.8 * got[0]["loss"]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def events(path):
    """TFRecords of Events, decoded without TensorBoard: {step: {tag: value}}, and the other fields."""
    data, at, found, others = path.read_bytes(), 0, {}, []

    def masked(part):
        crc = crc32c(part)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    def varint(buffer, pos):
        value = shift = 0
        while True:
            byte = buffer[pos]
            value |= (byte & 0x7F) << shift
            pos, shift = pos + 1, shift + 7
            if byte < 0x80:
                return value, pos

    def fields(buffer):
        pos = 0
        while pos < len(buffer):
            key, pos = varint(buffer, pos)
            if key & 7 == 0:
                value, pos = varint(buffer, pos)
            else:
                size = {1: 8, 5: 4}.get(key & 7)
                if size is None:
                    assert key & 7 == 2
                    size, pos = varint(buffer, pos)
                value, pos = buffer[pos : pos + size], pos + size
            yield key >> 3, value

    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        assert crc == masked(data[at : at + 8])
        event = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length)[0] == masked(event)
        at += 16 + length
        event = dict(fields(event))
        assert abs(struct.unpack("<d", event[1])[0] - time.time()) < 3600
        if 5 in event:
            for _, value in fields(event[5]):
                value = dict(fields(value))
                scalar = struct.unpack("<f", value[2])[0]
                found.setdefault(event[2], {})[value[1].decode()] = scalar
        else:
            others.append({key: value for key, value in event.items() if key != 1})
    return found, others


def test_event_files_hold_the_metrics(tmp_path):
    make_data(tmp_path, TEXT)
    config = write_config(
        tmp_path, max_steps=6, log_every=2, eval_every=3, schedule="constant", checkpoint_every=4
    )
    assert mdn("train", config).returncode == 0
    out = tmp_path / "out"
    (first,) = (out / "tensorboard").iterdir()
    found, others = events(first)
    assert others == [{2: 0, 3: b"brain.Event:2"}]
    for line in metrics(out):
        event = found[line["step"]]
        for key in ("loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second"):
            assert event["train/" + key] == pytest.approx(line[key], rel=1e-6)
    evals = metrics(out, "eval")
    assert [line["step"] for line in evals] == [0, 3, 6]
    for line in evals:
        assert found[line["step"]]["held_out/loss"] == pytest.approx(line["loss"], rel=1e-6)

    # A resumed run starts a file of its own, which tells readers from where on it counts.
    assert mdn("train", config, "--resume", "--max_steps", 8).returncode == 0
    (second,) = set((out / "tensorboard").iterdir()) - {first}
    found, others = events(second)
    assert others == [{2: 0, 3: b"brain.Event:2"}, {2: 7, 7: b"\x08\x01"}]
    assert set(found) == {8}


def start(config, *flags):
    return subprocess.Popen(
        [MDN, "train", str(config), *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process, word):
    for line in process.stdout:
        if word in line:
            return
    raise AssertionError(f"{word!r} never came")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_a_checkpoint(tmp_path, number):
    make_data(tmp_path, TEXT)
    config = write_config(tmp_path, max_steps=10**6, checkpoint_every=0, log_every=5)
    process = start(config)
    wait_for(process, "step 5/")
    process.send_signal(number)
    output = process.stdout.read()
    assert process.wait(timeout=60) == 128 + number
    (checkpoint,) = checkpoints(tmp_path / "out")
    check_whole(checkpoint)
    assert checkpoint.name in output and "--resume" in output
    assert (tmp_path / "out" / "loss_curve.svg").exists()
    resumed = start(config, "--resume")
    wait_for(resumed, f"resuming {checkpoint}")
    resumed.kill()
    resumed.wait()


def cpu_seconds(pid):
    fields = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_second_signal_ends_it_at_once(tmp_path):
    """In a step of 100,000 micro-batches, which the first signal would wait for."""
    make_data(tmp_path, TEXT)
    config = write_config(
        tmp_path, accumulate=100_000, max_steps=2, checkpoint_every=0, eval_every=1
    )
    process = start(config)
    wait_for(process, "held-out loss")
    before = cpu_seconds(process.pid)
    while cpu_seconds(process.pid) < before + 0.5:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert checkpoints(tmp_path / "out") == []


def test_errors_are_sentences(tmp_path):
    make_data(tmp_path, TEXT)
    config = write_config(tmp_path, max_steps=2, lerning_rate=1)
    done = mdn("train", config)
    assert done.returncode == 1
    assert done.stderr.startswith("mdn: ") and "'lerning_rate'" in done.stderr
    assert "learning_rate" in done.stderr
    config = write_config(tmp_path, max_steps=2)
    done = mdn("train", config, "--data", tmp_path / "nowhere")
    assert done.returncode == 1 and "nowhere" in done.stderr
    done = mdn("train", config, "--clip", "-1")
    assert done.returncode == 1 and "clip" in done.stderr and "-1" in done.stderr


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_checkpoint_that_does_not_fit_is_reported_and_harms_nothing(tmp_path):
    """Files may not pass a size between the model's and the optimiser's."""
    make_data(tmp_path, TEXT)
    config = write_config(tmp_path, max_steps=12, checkpoint_every=3, schedule="constant", warmup_fraction=0)
    whole = tmp_path / "whole"
    assert mdn("train", config, "--out", whole).returncode == 0
    model = (whole / "step-00000012" / "model.safetensors").stat().st_size
    optimizer = (whole / "step-00000012" / "optimizer.safetensors").stat().st_size

    out = tmp_path / "out"
    assert mdn("train", config, "--max_steps", 3).returncode == 0
    first = content(out / "step-00000003")
    limit = (model + optimizer) // 2
    done = mdn("train", config, "--resume", preexec_fn=lambda: limit_file_size(limit))
    # Periodic checkpoints are reported and training goes on; the last one is an error.
    assert done.returncode == 1
    for step in (6, 9):
        assert f"no checkpoint at step {step}: " in done.stdout
    for message in (done.stdout, done.stderr):
        assert "optimizer.safetensors" in message
        assert f"of {optimizer} bytes" in message or "bytes" in message
    assert [path.name for path in checkpoints(out)] == ["step-00000003"]
    assert content(out / "step-00000003") == first
    assert not list(out.glob(".step-*"))
    assert len(metrics(out)) == 1  # log_every 10

    assert mdn("train", config, "--resume").returncode == 0
    assert content(out / "step-00000012") == content(whole / "step-00000012")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MiB, where the machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_survived(tmp_path, small_disk):
    make_data(tmp_path, TEXT)
    config = write_config(tmp_path, max_steps=12, checkpoint_every=3, keep=2, log_every=1,
                          schedule="constant", warmup_fraction=0)
    whole = tmp_path / "whole"
    assert mdn("train", config, "--out", whole).returncode == 0
    out = small_disk / "out"
    size = sum(path.stat().st_size for path in (whole / "step-00000012").iterdir())
    assert 3.5 * size < 2**21, "two checkpoints must fit, and a third beside the ballast must not"
    assert mdn("train", config, "--out", out, "--max_steps", 6).returncode == 0
    kept = {path.name: content(path) for path in checkpoints(out)}
    free = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(b"x" * (free.f_bavail * free.f_bsize - size // 2))

    done = mdn("train", config, "--out", out, "--resume")
    assert done.returncode == 1
    assert "no checkpoint at step 9: " in done.stdout
    assert "safetensors" in done.stderr and "bytes" in done.stderr
    assert {path.name: content(path) for path in checkpoints(out)} == kept
    for path in checkpoints(out):
        check_whole(path)

    (small_disk / "ballast").unlink()
    assert mdn("train", config, "--out", out, "--resume").returncode == 0
    assert content(out / "step-00000012") == content(whole / "step-00000012")
