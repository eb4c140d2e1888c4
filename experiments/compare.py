"""Trains and evaluates the architectures against each other, and writes the report.

    python3 -m experiments.compare --size tiny --dry-run      # what would be done, and how long it would take
    python3 -m experiments.compare --size small --device cuda:0 --device cuda:1 --share 4 --budget 1200
    python3 -m experiments.compare --size small --report-only

Runs that have a record are not repeated; an interrupted one goes on from its checkpoint. experiments/README.md
says what is needed first.
"""

import argparse
import json
import queue
import signal
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from .plan import SIZES, Run, Size, estimated_seconds, kind_of, make_plan, recipe_key, target_parameters
from .report import read_records, write_report
from .runner import GRACE, Failure, Program, Stopped, SyntheticData, carry_out

ROOT = Path(__file__).resolve().parents[1]


def measured_seconds(records: list[dict]) -> dict[tuple, float]:
    """By kind of run: the longest. Of a run that went on from a checkpoint, the whole."""
    seconds: dict[tuple, float] = {}
    for record in records:
        if record["status"] == "done":
            kind = kind_of(record["task"], record["width"], record["train_file"]["model"])
            whole = max(record["seconds"], record["train"]["seconds"] + record["eval_seconds"])
            seconds[kind] = max(seconds.get(kind, 0), whole)
    return seconds


def print_plan(runs: list[Run], size: Size, settled: dict[str, str], measured: dict[tuple, float], devices: int) -> None:
    print(f"{'run':<32} {'parameters':>12} {'off':>6} {'tokens':>12} {'steps':>7} {'estimate':>9}")
    total = 0.0
    targets = {size.shape.hidden_size: target_parameters(size.shape)}
    for run in runs:
        seconds = estimated_seconds(run, size, measured)
        target = targets.get(run.width) if run.task == "lm" else next(
            target_parameters(shape) for task in size.synthetic if task.name == run.task
            for shape in task.shapes if shape.hidden_size == run.width)
        state = settled.get(run.name, f"{seconds:.0f} s")
        total += 0 if run.name in settled else seconds
        print(f"{run.name:<32} {run.parameters:>12,} {run.parameters / target - 1:>+6.2%} {run.training.seen:>12,} "
              f"{run.training.steps:>7,} {state:>9}")
    print(f"{len(runs)} runs, {len(settled)} of them settled; about {total / devices / 60:.0f} "
          f"minutes on {devices} device(s), alone. Times: "
          f"{'measured where a run of the kind is done, else ' if measured else ''}assumed (experiments/plan.py)")


def check_configs(program: Program, runs: list[Run], work: Path) -> list[str]:
    """Compares every config's count with the program's. Returns the runs that this program cannot do."""
    folder = work / "configs"
    folder.mkdir(parents=True, exist_ok=True)
    texts = list(dict.fromkeys(json.dumps(run.config, sort_keys=True) for run in runs))

    def counted(number: int) -> int | str:
        path = folder / f"config-{number}.json"
        path.write_text(texts[number])
        try:
            return program.parameters(path)
        except Failure as failure:
            return str(failure)

    with ThreadPoolExecutor() as pool:
        counts = dict(zip(texts, pool.map(counted, range(len(texts)))))
    unsupported = []
    for run in runs:
        answer = counts[json.dumps(run.config, sort_keys=True)]
        if isinstance(answer, str):
            unsupported.append(f"{run.name}: {answer}")
        elif answer != run.parameters:
            raise SystemExit(f"{run.name}: mdn info counts {answer:,} parameters, experiments/parameters.py "
                             f"{run.parameters:,}")
    return unsupported


class Campaign:
    """Runs from a queue: a device takes a language model alone, runs of made-up tasks up to `share` at a time."""

    def __init__(self, program: Program, size: Size, work: str, corpus: Path, raw: Path, share: int,
                 deadline: float | None):
        self.program, self.size, self.work, self.corpus, self.raw = program, size, work, corpus, raw
        self.share, self.deadline = share, deadline
        self.data = SyntheticData(program, size, work)
        self.lock = threading.Lock()
        self.seconds = measured_seconds(read_records(raw))
        self.failed: list[str] = []
        self.left: list[str] = []

    def carry_out(self, runs: list[Run], devices: list[str]) -> None:
        """Of a round the longest come first, so that devices end together."""
        runs = sorted(runs, key=lambda run: (run.round, -estimated_seconds(run, self.size, self.seconds)))
        pending: queue.SimpleQueue[Run] = queue.SimpleQueue()
        for run in runs:
            pending.put(run)
        tasks = dict.fromkeys(run.task for run in runs if run.task != "lm")
        with ThreadPoolExecutor(len(devices) + len(tasks)) as pool:
            workers = [pool.submit(self._serve, pending, device) for device in devices]
            workers += [pool.submit(self.data.make, task) for task in tasks]  # while the first runs go on
            for worker in workers:
                worker.result()  # raises what the worker raised

    def _serve(self, pending: "queue.SimpleQueue[Run]", device: str) -> None:
        together: set[Future] = set()
        with ThreadPoolExecutor(self.share) as pool:
            while True:
                try:
                    run = pending.get_nowait()
                except queue.Empty:
                    break
                alone = run.task == "lm"
                while together and (alone or len(together) == self.share):
                    ended, together = wait(together, return_when=FIRST_COMPLETED)
                    for future in ended:
                        future.result()  # raises what the run raised
                if alone:
                    self._run(run, device, 1)
                else:
                    together.add(pool.submit(self._run, run, device, self.share))
            for future in together:
                future.result()

    def _run(self, run: Run, device: str, together: int) -> None:
        seconds = estimated_seconds(run, self.size, self.seconds)
        if self.program.stop.is_set() or (self.deadline and time.monotonic() + seconds > self.deadline):
            self._say(f"{run.name}: left out, it would take about {seconds:.0f} s")
            self.left.append(run.name)
            return
        self._say(f"{run.name} on {device}, about {seconds:.0f} s")
        try:
            record = carry_out(self.program, run, self.size, device, together, self.work, self.corpus, self.data)
        except Stopped:
            self._say(f"{run.name}: stopped")
            self.left.append(run.name)
            return
        write_atomically(self.raw / f"{run.name}.json", record_text(record))
        self._say(f"{run.name}: {summary(record)} in {record['seconds']:.0f} s")
        with self.lock:
            if record["status"] == "done":
                for kind, measured in measured_seconds([record]).items():
                    self.seconds[kind] = max(measured, self.seconds.get(kind, 0))
            else:
                self.failed.append(run.name)

    def _say(self, text: str) -> None:
        with self.lock:
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def record_text(record: dict) -> str:
    """JSON with a line for each of its keys."""
    return "{\n" + ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in record.items()) + "\n}\n"


def summary(record: dict) -> str:
    if record["status"] != "done":
        return f"FAILED: {record['error']}"
    train = record["train"]
    loss = f"held-out loss {train['held_out_loss']:.4f}, " if train["held_out_loss"] is not None else ""
    return (f"{loss}{train['tokens_per_second']:,} tokens/s, {record['train_seconds']:.0f} s of training, "
            f"{record['eval_seconds']:.0f} s of evaluation")


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
                        help="end within this time: start no run that would not fit, stop those that turn out longer")
    parser.add_argument("--share", type=int, default=1, metavar="N",
                        help="runs of made-up tasks, which are small, that go on together on a device (default: 1)")
    parser.add_argument("--mdn", default=str(ROOT / "build" / "mdn"), help="the program (default: build/mdn)")
    parser.add_argument("--corpus", default="out/corpus", help="folder of experiments.corpus.build")
    parser.add_argument("--work", default="out/comparison", help="folder of checkpoints and logs")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results" / "comparison",
                        help="folder of raw/ and pictures; the page is written beside it")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    start = time.monotonic()
    options = parse(arguments)
    size = SIZES[options.size]
    devices = options.device or ["cpu"]
    if len(set(devices)) < len(devices) or options.share < 1:
        raise SystemExit("--device: each device once (--share lets runs share one); --share: at least 1")
    raw = options.results / "raw"
    runs = [run for run in make_plan(options.size, options.corpus, options.work)
            if not options.only or any(part in run.name for part in options.only)]
    if not runs:
        raise SystemExit(f"--only {' '.join(options.only)}: no run's name contains any of these; --dry-run lists them")
    records = read_records(raw)
    keys = {run.name: recipe_key(run, devices[0]) for run in runs}
    settled = {r["name"]: r["status"] for r in records if r["key"] == keys.get(r["name"])}
    if options.dry_run:
        print_plan(runs, size, settled, measured_seconds(records), len(devices))
        return 0
    status = 0
    if not options.report_only:
        runs = [run for run in runs if run.name not in settled]
        work = f"{options.work}/{options.size}"
        program = Program(options.mdn, ROOT)
        unsupported = check_configs(program, runs, ROOT / work)
        for line in unsupported:
            print(f"cannot be run: {line}", file=sys.stderr)
        cannot = {line.partition(":")[0] for line in unsupported}
        runs = [run for run in runs if run.name not in cannot]
        if any(run.task == "lm" for run in runs):
            data = ROOT / options.corpus / size.data / "manifest.json"
            if not data.exists():
                raise SystemExit(f"{data}: missing; experiments.corpus.build --shards makes it")
        raw.mkdir(parents=True, exist_ok=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: program.stop.set())
        deadline = start + options.budget if options.budget else None
        campaign = Campaign(program, size, work, ROOT / options.corpus, raw, options.share, deadline)
        if deadline:
            alarm = threading.Timer(max(0, deadline - GRACE - time.monotonic()), program.stop.set)
            alarm.daemon = True
            alarm.start()
        campaign.carry_out(runs, devices)
        failed = campaign.failed + [name for name, answer in settled.items() if answer != "done"]
        status = 1 if failed or unsupported else 0
        if not any(raw.glob("*.json")):
            print("no run was finished")
            return 1
    write_report(options.size, raw, options.results.with_suffix(".md"))
    print(f"{options.results.with_suffix('.md')}")
    return status


if __name__ == "__main__":
    sys.exit(main())
