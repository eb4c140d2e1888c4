"""Times the operators of the other architectures on a GPU, beside published figures.

    PYTHONPATH=python MDN_LIBRARY=build python bench/bench_rivals.py

Gated DeltaNet, Comba and Mamba2 run on the momentum operator at mu = 0 (Mamba2 also at pi = 0), KDA
on its own chunkwise program. bfloat16, L2 flushed before each call, median of 20. Prints Markdown.
"""

import statistics
import sys

import torch

import mdn

CALLS, WARM_UP = 20, 3


def inputs(B, T, H, HV, K, V):
    generator = torch.Generator("cuda").manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, device="cuda", generator=generator).bfloat16()

    def gate(low, high, *shape):
        return low + (high - low) * torch.rand(
            *shape, device="cuda", generator=generator
        )

    return normal, gate, (B, T, H, K), (B, T, HV, V), (B, T, HV)


def gated_delta_rule(normal, gate, q_shape, v_shape, gates):
    q, k, v = normal(*q_shape), normal(*q_shape), normal(*v_shape)
    alpha, beta = gate(0.9, 1, *gates), gate(0, 1, *gates)
    zero, one = torch.zeros_like(alpha), torch.ones_like(alpha)

    def call(q, k, v, alpha, beta):
        return mdn.momentum_delta_rule(q, k, v, alpha, zero, beta, one, l2norm=True)[0]

    return call, [q, k, v, alpha, beta]


def mamba2(normal, gate, q_shape, v_shape, gates):
    c, b, x = normal(*q_shape), normal(*q_shape), normal(*v_shape)
    decay, dt = gate(0.9, 1, *gates), gate(0.001, 0.1, *gates)
    zero, one = torch.zeros_like(dt), torch.ones_like(dt)

    def call(c, b, x, decay, dt):
        return mdn.momentum_delta_rule(
            c, b, x, decay, zero, dt, one, pi=zero, scale=1.0
        )[0]

    return call, [c, b, x, decay, dt]


def kimi_delta_rule(normal, gate, q_shape, v_shape, gates):
    q, k, v = normal(*q_shape), normal(*q_shape), normal(*v_shape)
    alpha, beta = gate(0.9, 1, *gates, q_shape[-1]), gate(0, 1, *gates)

    def call(q, k, v, alpha, beta):
        return mdn.kimi_delta_rule(q, k, v, alpha, beta, l2norm=True)[0]

    return call, [q, k, v, alpha, beta]


# operator, (B, T, H, HV, K, V), published figure
CASES = [
    ("GDN", gated_delta_rule, (8, 4096, 6, 6, 128, 256), "FLA 0.94 / 2.99"),
    ("GDN", gated_delta_rule, (8, 4096, 8, 8, 128, 128), "FLA 0.91 / 3.41"),
    ("GDN", gated_delta_rule, (4, 4096, 6, 6, 256, 512), "not measured"),
    ("Mamba2", mamba2, (8, 4096, 1, 32, 128, 64), "not measured"),
    ("KDA", kimi_delta_rule, (8, 4096, 8, 8, 128, 128), "not measured"),
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


def measure(name, make, shape, published, flush):
    call, tensors = make(*inputs(*shape))
    with torch.no_grad():
        forward = median_ms(lambda: call(*tensors), flush)
    leaves = [t.requires_grad_(True) for t in tensors]
    d_o = torch.randn_like(call(*leaves))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both = median_ms(lambda: torch.autograd.grad(call(*leaves), leaves, d_o), flush)
    memory = (torch.cuda.max_memory_allocated() - before) / 2**20
    sizes = ",".join(map(str, shape))
    print(
        f"| {name} | {sizes} | {forward:.3f} | {both:.3f} | {memory:.0f} | {published} |"
    )
    sys.stdout.flush()


def main():
    flush = torch.empty(256 * 2**20, dtype=torch.uint8, device="cuda")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print(
        "| operator | B,T,H,HV,K,V | forward ms | both ms | extra MiB | published, ms |"
    )
    print("|---|---|---|---|---|---|")
    for case in CASES:
        measure(*case, flush)


if __name__ == "__main__":
    main()
