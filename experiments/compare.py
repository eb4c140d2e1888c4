"""Trains and evaluates the architectures against each other, and writes the report.

    python3 -m experiments.compare --size tiny --dry-run      # what would be done, and how long it would take
    python3 -m experiments.compare --size small --device cuda --budget 1500
    python3 -m experiments.compare --size medium --device cuda:0 --device cuda:1
    python3 -m experiments.compare --size small --report-only

Runs that have a record are not repeated; an interrupted one goes on from its checkpoint. experiments/README.md
says what is needed first.
"""

import argparse
import json
import queue
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .plan import SIZES, Run, Size, estimated_seconds, make_plan, recipe_key, target_parameters
from .report import read_records, write_report
from .runner import Failure, Program, carry_out, make_synthetic_data

ROOT = Path(__file__).resolve().parents[1]


def measured_rates(records: list[dict]) -> dict[str, float]:
    """tokens/s by run name without its seed."""
    return {record["name"].rpartition("-s")[0]: record["train"]["tokens_per_second"]
            for record in records if record["status"] == "done"}


def print_plan(runs: list[Run], size: Size, done: set[str], rates: dict[str, float], devices: int) -> None:
    print(f"{'run':<32} {'parameters':>12} {'off':>6} {'tokens':>12} {'steps':>7} {'estimate':>9}")
    total = 0.0
    targets = {size.shape.hidden_size: target_parameters(size.shape)}
    for run in runs:
        seconds = estimated_seconds(run, size, rates)
        target = targets.get(run.width) if run.task == "lm" else next(
            target_parameters(shape) for task in size.synthetic if task.name == run.task
            for shape in task.shapes if shape.hidden_size == run.width)
        state = "done" if run.name in done else f"{seconds:.0f} s"
        total += 0 if run.name in done else seconds
        print(f"{run.name:<32} {run.parameters:>12,} {run.parameters / target - 1:>+6.2%} {run.training.seen:>12,} "
              f"{run.training.steps:>7,} {state:>9}")
    print(f"{len(runs)} runs, {len(done & {run.name for run in runs})} of them done; about {total / devices / 60:.0f} "
          f"minutes on {devices} device(s). Rates: {'measured where a run of the kind is done, else ' if rates else ''}"
          "assumed (experiments/plan.py)")


def check_configs(program: Program, runs: list[Run], work: Path) -> list[str]:
    """Compares every config's count with the program's. Returns the runs that this program cannot do."""
    unsupported, counts = [], {}
    folder = work / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        text = json.dumps(run.config, sort_keys=True)
        if text not in counts:
            path = folder / "config.json"
            path.write_text(text)
            try:
                counts[text] = program.parameters(path)
            except Failure as failure:
                counts[text] = str(failure)
        if isinstance(counts[text], str):
            unsupported.append(f"{run.name}: {counts[text]}")
        elif counts[text] != run.parameters:
            raise SystemExit(f"{run.name}: mdn info counts {counts[text]:,} parameters, experiments/parameters.py "
                             f"{run.parameters:,}")
    return unsupported


class Campaign:
    """Runs from a queue, one worker a device."""

    def __init__(self, program: Program, size: Size, work: str, corpus: Path, raw: Path, budget: float | None):
        self.program, self.size, self.work, self.corpus, self.raw = program, size, work, corpus, raw
        self.deadline = time.monotonic() + budget if budget else None
        self.lock = threading.Lock()
        self.rates = measured_rates(read_records(raw))
        self.failed: list[str] = []
        self.left: list[str] = []

    def carry_out(self, runs: list[Run], devices: list[str]) -> None:
        pending: queue.SimpleQueue[Run] = queue.SimpleQueue()
        for run in runs:
            pending.put(run)
        with ThreadPoolExecutor(len(devices)) as pool:
            for worker in [pool.submit(self._work, pending, device) for device in devices]:
                worker.result()  # raises what the worker raised

    def _work(self, pending: "queue.SimpleQueue[Run]", device: str) -> None:
        while True:
            try:
                run = pending.get_nowait()
            except queue.Empty:
                return
            seconds = estimated_seconds(run, self.size, self.rates)
            if self.deadline and time.monotonic() + seconds > self.deadline:
                self._say(f"{run.name}: left out, it would take about {seconds:.0f} s")
                self.left.append(run.name)
                continue
            self._say(f"{run.name} on {device}, about {seconds:.0f} s")
            start = time.monotonic()
            record = carry_out(self.program, run, self.size, device, self.work, self.corpus)
            write_atomically(self.raw / f"{run.name}.json", json.dumps(record, indent=1) + "\n")
            self._say(f"{run.name}: {summary(record)} in {time.monotonic() - start:.0f} s")
            with self.lock:
                if record["status"] == "done":
                    self.rates.update(measured_rates([record]))
                else:
                    self.failed.append(run.name)

    def _say(self, text: str) -> None:
        with self.lock:
            print(text, flush=True)


def summary(record: dict) -> str:
    if record["status"] != "done":
        return f"FAILED: {record['error']}"
    train = record["train"]
    loss = f"held-out loss {train['held_out_loss']:.4f}, " if train["held_out_loss"] is not None else ""
    return f"{loss}{train['tokens_per_second']:,} tokens/s"


def write_atomically(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    part.rename(path)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="experiments.compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="tiny")
    parser.add_argument("--device", action="append", metavar="DEVICE",
                        help="cpu, cuda, cuda:N; given several times, runs go on side by side (default: cpu)")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--report-only", action="store_true", help="write the report from the records there are")
    parser.add_argument("--only", nargs="*", default=[], metavar="PART",
                        help="runs whose name contains one of these: lm-mdn, mqar, -s0")
    parser.add_argument("--budget", type=float, metavar="SECONDS",
                        help="start no run that would end later than this from now")
    parser.add_argument("--mdn", default=str(ROOT / "build" / "mdn"), help="the program (default: build/mdn)")
    parser.add_argument("--corpus", default="out/corpus", help="folder of experiments.corpus.build")
    parser.add_argument("--work", default="out/comparison", help="folder of checkpoints and logs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "comparison",
                        help="folder of raw/ and pictures; the page is written beside it")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    size = SIZES[options.size]
    devices = options.device or ["cpu"]
    raw = options.results / "raw"
    runs = [run for run in make_plan(options.size, options.corpus, options.work)
            if not options.only or any(part in run.name for part in options.only)]
    if not runs:
        raise SystemExit(f"--only {' '.join(options.only)}: no run's name contains any of these; --dry-run lists them")
    records = read_records(raw)
    keys = {run.name: recipe_key(run, devices[0]) for run in runs}
    done = {r["name"] for r in records if r["status"] == "done" and r["key"] == keys.get(r["name"])}
    if options.dry_run:
        print_plan(runs, size, done, measured_rates(records), len(devices))
        return 0
    status = 0
    if not options.report_only:
        work = f"{options.work}/{options.size}"
        program = Program(options.mdn, ROOT)
        unsupported = check_configs(program, runs, ROOT / work)
        wanted = {line.partition(":")[0] for line in unsupported}
        if any(run.task != "lm" for run in runs) and not program.has_command("synth"):
            unsupported.append("mqar, parity, s3, s5: this program has no `mdn synth` to make training data with")
            wanted |= {run.name for run in runs if run.task != "lm"}
        for line in unsupported:
            print(f"cannot be run: {line}", file=sys.stderr)
        runs = [run for run in runs if run.name not in wanted]
        if any(run.task == "lm" for run in runs):
            data = ROOT / options.corpus / size.data / "manifest.json"
            if not data.exists():
                raise SystemExit(f"{data}: missing; experiments.corpus.build --shards makes it")
        for task in size.synthetic:
            if any(run.task == task.name for run in runs):
                make_synthetic_data(program, task, work)
        raw.mkdir(parents=True, exist_ok=True)
        campaign = Campaign(program, size, work, ROOT / options.corpus, raw, options.budget)
        campaign.carry_out([run for run in runs if run.name not in done], devices)
        status = 1 if campaign.failed or unsupported else 0
    write_report(options.size, raw, options.results.with_suffix(".md"))
    print(f"{options.results.with_suffix('.md')}")
    return status


if __name__ == "__main__":
    sys.exit(main())
