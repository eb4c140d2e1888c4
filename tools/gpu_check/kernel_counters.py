"""A table of ncu's counters for `bench_momentum_delta_rule_cuda once`, from its raw page in CSV (standard input).

Lines "call NAME" of the program name the calls in their order; a call's first kernel is `prepare` or the step.
"""

import csv
import re
import sys

FIRST = ("prepare", "step_kernel")
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio$")
NO_WAITS = ("selected", "not_selected")  # the warp that issues, and those that could
SHARES = (
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed",
    "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "smsp__issue_active.avg.pct_of_peak_sustained_active",
)


def number(text):
    return float(text.replace(",", ""))


def scaled(row, units, name):
    """A counter in seconds or bytes: ncu chooses its prefixes."""
    prefix = re.fullmatch(r"([numKMGT]?)(s|second|byte)", units[name]).group(1)
    powers = {"n": -9, "u": -6, "m": -3, "": 0, "K": 3, "M": 6, "G": 9, "T": 12}
    return number(row[name]) * 10.0 ** powers[prefix]


def waits(row):
    """The largest shares of the cycles that warps with an instruction wait."""
    ratios = {m.group(1): number(row[name]) for name in row if (m := STALL.match(name))}
    total = sum(value for reason, value in ratios.items() if reason not in NO_WAITS)
    largest = sorted(set(ratios) - set(NO_WAITS), key=ratios.get, reverse=True)[:3]
    return ", ".join(f"{reason.replace('_', ' ')} {ratios[reason] / total:.0%}" for reason in largest)


def main():
    lines = sys.stdin.read().splitlines()
    calls = [line.removeprefix("call ") for line in lines if line.startswith("call ")]
    start = next(i for i, line in enumerate(lines) if line.startswith('"ID"'))
    units, *rows = csv.DictReader(lines[start:])
    print("| call | kernel | blocks | µs | MB from and to memory | of its rate | tensor cores | shared memory | issue slots | waits |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    call = -1
    for row in rows:
        name = row["Kernel Name"].removeprefix("void ").split("<")[0].split("(")[0].split("::")[-1]
        call += name in FIRST
        blocks = re.search(r"\d+", row["Grid Size"]).group(0)
        shares = " | ".join(f"{number(row[share]):.0f}%" for share in SHARES)
        seconds, moved = (scaled(row, units, n) for n in ("gpu__time_duration.sum", "dram__bytes.sum"))
        print(f"| {calls[call]} | {name} | {blocks} | {seconds * 1e6:.1f} | {moved * 1e-6:.0f} | {shares} | {waits(row)} |")


main()
