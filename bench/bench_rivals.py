"""Times the operators of all architectures on a GPU beside their authors' kernels on the same card.

    PYTHONPATH=python MDN_LIBRARY=build python bench/bench_rivals.py [NAME ...]

GDN, Comba and Mamba2 are the momentum operator without momentum (Mamba2 with pi = 0), KDA an operator of its
own. The peers are the packages `fla` (flash-linear-attention) and `mamba_ssm` where Python finds them; their
first call, which compiles and tunes, is timed by itself. bfloat16, L2 flushed before each call, median of 20.
A peer's o is compared with ours, so that both do the same work. Prints Markdown.
"""

import importlib
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import mdn

CALLS, WARM_UP = 20, 3
TOLERANCE = 0.03  # of o, relative: two programs that round to bfloat16 in different places


@dataclass
class Call:
    """`run(*tensors)` gives o; `peer`, where there is one, another program's o from the same tensors."""

    run: Callable[..., Tensor]
    tensors: list[Tensor]
    peer: Callable[..., Tensor] | None


def peer(module: str, function: str) -> Callable | None:
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError:
        return None


class Draw:
    """Inputs of one shape (B, T, H, HV, K, V): normal q, k, v and uniform gates."""

    def __init__(self, B, T, H, HV, K, V):
        self.generator = torch.Generator("cuda").manual_seed(1)
        self.keys, self.values, self.heads = (B, T, H, K), (B, T, HV, V), (B, T, HV)
        self.channels = (B, T, HV, K)

    def normal(self, shape):
        return torch.randn(*shape, device="cuda", generator=self.generator).bfloat16()

    def gate(self, low, high, shape):
        return low + (high - low) * torch.rand(*shape, device="cuda", generator=self.generator)

    def qkv(self):
        return [self.normal(self.keys), self.normal(self.keys), self.normal(self.values)]


def momentum_delta_rule(draw):
    chunk = peer("fla.ops.momentum_delta_rule", "chunk_momentum_delta_rule")

    def run(q, k, v, alpha, mu, eta, beta):
        return mdn.momentum_delta_rule(q, k, v, alpha, mu, eta, beta, l2norm=True)[0]

    def other(q, k, v, alpha, mu, eta, beta):
        return chunk(q, k, v, alpha.log(), mu.log(), beta=beta, eta=eta)[0]

    # mu from e^-0.1: below e^-0.3 the other program's mask is off by more than TOLERANCE
    gates = [draw.gate(low, 1, draw.heads) for low in (0.95, 0.905)] + [
        draw.gate(0, 1, draw.heads) for _ in range(2)
    ]
    return Call(run, draw.qkv() + gates, chunk and other)


def gated_delta_rule(draw):
    chunk = peer("fla.ops.gated_delta_rule", "chunk_gated_delta_rule")

    def run(q, k, v, alpha, beta):
        one = torch.ones_like(alpha)
        return mdn.momentum_delta_rule(q, k, v, alpha, None, beta, one, l2norm=True)[0]

    def other(q, k, v, alpha, beta):
        return chunk(q, k, v, alpha.log(), beta, use_qk_l2norm_in_kernel=True)[0]

    gates = [draw.gate(0.9, 1, draw.heads), draw.gate(0, 1, draw.heads)]
    return Call(run, draw.qkv() + gates, chunk and other)


def mamba2(draw):
    scan = peer("mamba_ssm.ops.triton.ssd_combined", "mamba_chunk_scan_combined")
    A = -torch.linspace(0.2, 1, draw.heads[2], device="cuda")

    def run(c, b, x, dt):
        zero, one = torch.zeros_like(dt), torch.ones_like(dt)
        decay = (dt * A).exp()
        return mdn.momentum_delta_rule(c, b, x, decay, None, dt, one, pi=zero, scale=1.0)[0]

    def other(c, b, x, dt):
        return scan(x, dt, A, b, c, chunk_size=256)

    return Call(run, draw.qkv() + [draw.gate(0.001, 0.1, draw.heads)], scan and other)


def kimi_delta_rule(draw):
    chunk = peer("fla.ops.kda", "chunk_kda")

    def run(q, k, v, alpha, beta):
        return mdn.kimi_delta_rule(q, k, v, alpha, beta, l2norm=True)[0]

    def other(q, k, v, alpha, beta):
        return chunk(q, k, v, alpha.log(), beta, use_qk_l2norm_in_kernel=True)[0]

    gates = [draw.gate(0.9, 1, draw.channels), draw.gate(0, 1, draw.heads)]
    return Call(run, draw.qkv() + gates, chunk and other)


# name, draw, (B, T, H, HV, K, V)
CASES = [
    ("GDN", gated_delta_rule, (8, 4096, 6, 6, 128, 256)),
    ("GDN", gated_delta_rule, (8, 4096, 8, 8, 128, 128)),
    ("GDN", gated_delta_rule, (4, 4096, 6, 6, 256, 512)),
    ("KDA", kimi_delta_rule, (8, 4096, 8, 8, 128, 128)),
    ("Mamba2", mamba2, (8, 4096, 1, 32, 128, 64)),
    ("MDN", momentum_delta_rule, (8, 4096, 8, 8, 128, 128)),
]


def median_ms(call, flush):
    times = []
    for i in range(WARM_UP + CALLS):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        if i >= WARM_UP:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def measure(function, tensors, flush):
    """First call s, forward ms, forward and backward ms, MiB beyond the inputs and their gradients."""
    leaves = [t.detach().requires_grad_(True) for t in tensors]
    start = time.perf_counter()
    d_o = torch.ones_like(function(*leaves))

    def both():
        torch.autograd.grad(function(*leaves), leaves, d_o)

    both()
    torch.cuda.synchronize()
    first = time.perf_counter() - start
    with torch.no_grad():
        forward = median_ms(lambda: function(*tensors), flush)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    total = median_ms(both, flush)
    return first, forward, total, (torch.cuda.max_memory_allocated() - before) / 2**20


def compare(name, make, shape, flush):
    call = make(Draw(*shape))
    sizes = ",".join(map(str, shape))

    def row(who, first, forward, both, memory, of_ours, said):
        print(
            f"| {name} | {sizes} | {who} | {forward:.3f} | {both:.3f} | {of_ours:.2f} | {memory:.0f} | {first:.1f} | {said} |",
            flush=True,
        )

    ours = measure(call.run, call.tensors, flush)
    row("ours", *ours, 1, "")
    if not call.peer:
        return
    with torch.no_grad():
        o, peer_o = call.run(*call.tensors).float(), call.peer(*call.tensors).float()
    error = ((o - peer_o).norm() / o.norm()).item()
    said = f"{error:.2%}" + ("" if error < TOLERANCE else ": NOT THE SAME WORK")
    try:
        theirs = measure(call.peer, call.tensors, flush)
    except RuntimeError as refusal:  # fla's backward passes refuse some versions of Triton
        print(f"| {name} | {sizes} | peer | - | - | - | - | - | {said}; refused: {refusal} |", flush=True)
        return
    row("peer", *theirs, theirs[2] / ours[2], said)


def main():
    chosen = sys.argv[1:]
    unknown = set(chosen) - {name for name, _, _ in CASES}
    if unknown:
        sys.exit(f"unknown {', '.join(sorted(unknown))}; there are GDN, KDA, Mamba2, MDN")
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    for package in ("fla", "mamba_ssm"):
        try:
            version = getattr(importlib.import_module(package), "__version__", "of unknown version")
        except ModuleNotFoundError:
            version = "not found"
        print(f"{package} {version}")
    print("\n| operator | B,T,H,HV,K,V | who | forward ms | both ms | times ours | extra MiB | first call s | o differs by |")
    print("|---|---|---|---|---|---|---|---|---|")
    for case in CASES:
        if not chosen or case[0] in chosen:
            compare(*case, flush)


if __name__ == "__main__":
    main()
