"""Carries out runs with the program mdn: training, evaluation, one JSON record each."""

import hashlib
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

from .plan import Run, Size, Synthetic, recipe_key, synthetic_folder

RECORD_FORMAT, RECORD_VERSION = "mdn-comparison-run", 1
CURVE_POINTS = 200


class Failure(Exception):
    """A command of the program that ended with an error."""


class Program:
    """The program mdn, run in the repository's root so that paths in records are relative."""

    def __init__(self, path: str, root: Path):
        self.path, self.root = path, root

    def output(self, *arguments: str) -> str:
        done = subprocess.run([self.path, *map(str, arguments)], cwd=self.root, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failure(last_line(done.stderr) or f"exit status {done.returncode}")
        return done.stdout

    def parameters(self, config_path: Path) -> int:
        text = self.output("info", str(config_path))
        match = re.search(r"^parameters\s+([\d,]+)", text, re.M)
        if not match:
            raise Failure(f"mdn info {config_path}: names no parameters")
        return int(match[1].replace(",", ""))

    def has_command(self, name: str) -> bool:
        return subprocess.run([self.path, name, "--help"], cwd=self.root, capture_output=True).returncode == 0

    def measured(self, log: Path, device: str, *arguments: str) -> tuple[float, int]:
        """Seconds and peak memory in bytes of a command, whose output goes to `log`."""
        start = time.monotonic()
        with log.open("a") as file:
            process = subprocess.Popen([self.path, *map(str, arguments)], cwd=self.root, stdout=file,
                                       stderr=subprocess.STDOUT)
            with DeviceMemory(device) as memory:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise Failure(last_line(log.read_text()) or f"exit status {process.returncode}")
        return time.monotonic() - start, memory.peak or usage.ru_maxrss * 1024


class DeviceMemory:
    """Samples what the card holds beyond what it held before: the largest of readings twice a second. Absent on
    the CPU, where the kernel counts."""

    def __init__(self, device: str):
        self.index = device.partition(":")[2] or "0" if device.startswith("cuda") else None
        self.peak = 0
        self.done = threading.Event()

    def __enter__(self):
        if self.index is not None:
            self.before = self._read()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        if self.index is not None:
            self.thread.join()

    def _read(self) -> int:
        text = subprocess.run(["nvidia-smi", f"--id={self.index}", "--query-gpu=memory.used",
                               "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True).stdout
        return int(text.split()[0]) << 20

    def _watch(self):
        while not self.done.wait(0.5):
            self.peak = max(self.peak, self._read() - self.before)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def last_line(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", lines[-1]).strip() if lines else ""


def hardware(device: str) -> str:
    if device.startswith("cuda"):
        index = device.partition(":")[2] or "0"
        return subprocess.run(["nvidia-smi", f"--id={index}", "--query-gpu=name", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.strip()
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{match[1] if match else 'CPU'}, {os.cpu_count()} cores"


def make_synthetic_data(program: Program, task: Synthetic, work: str) -> None:
    """The training examples of a task, once for all models."""
    folder = f"{work}/data/{synthetic_folder(task)}"
    if not (program.root / folder / "manifest.json").exists():
        specs = [f"{spec},examples={examples}" for spec, examples in task.train]
        program.output("synth", *specs, "--out", folder)


def evaluations(run: Run, size: Size, corpus: Path) -> list[str]:
    """Tasks of mdn eval."""
    if run.task != "lm":
        task = next(task for task in size.synthetic if task.name == run.task)
        return [f"{spec},examples={max(size.examples, 10)}" for spec in task.evaluate]
    length = size.training.length
    tasks = [f"perplexity:data={run.data},split=val,window={length},extrapolate=4"]
    if (corpus / "held_out_long.jsonl.zst").exists():
        tasks.append(f"perplexity:file={run.data.rpartition('/')[0]}/held_out_long.jsonl.zst,window={length},"
                     f"extrapolate=4")
    for needle_length in size.needles:
        tasks.append(f"niah_single_1:length={needle_length},examples={size.examples}")
        tasks.append(f"niah_single_2:text=corpus/shakespeare.txt,length={needle_length},examples={size.examples}")
    return tasks


def read_metrics(path: Path) -> dict:
    """The curve and the rate of a run from its metrics.jsonl."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    train = [line for line in lines if line["kind"] == "train"]
    held_out = [line for line in lines if line["kind"] == "eval"]
    # The first lines hold what the program builds at its start.
    rates = sorted(line["tokens_per_second"] for line in train[len(train) // 10 :])
    stride = max(1, len(train) // CURVE_POINTS)
    return {
        "tokens": train[-1]["tokens"] if train else 0,
        "seconds": train[-1]["seconds"] if train else 0,
        "tokens_per_second": rates[len(rates) // 2] if rates else 0,
        "skipped_steps": sum(line["kind"] == "skip" for line in lines),
        "train_curve": [[line["tokens"], line["loss"]] for line in train[::stride]],
        "held_out_curve": [[line["step"], line["loss"]] for line in held_out],
        "held_out_loss": held_out[-1]["loss"] if held_out else None,
        "bits_per_byte": held_out[-1]["bits_per_byte"] if held_out else None,
    }


def newest_checkpoint(folder: Path) -> Path:
    found = sorted(folder.glob("step-*"))
    if not found:
        raise Failure(f"{folder} holds no checkpoint")
    return found[-1]


def carry_out(program: Program, run: Run, size: Size, device: str, work: str, corpus: Path) -> dict:
    """Trains, going on where an interrupted call stopped, and evaluates. The record tells of failures too."""
    out = f"{work}/runs/{run.name}"
    folder = program.root / out
    folder.mkdir(parents=True, exist_ok=True)
    train_file = run.train_file(out, device)
    (folder / "train.json").write_text(json.dumps(train_file, indent=1))
    record = {
        "format": RECORD_FORMAT, "version": RECORD_VERSION, "name": run.name, "model": run.model, "task": run.task,
        "width": run.width, "seed": run.seed, "parameters": run.parameters, "key": recipe_key(run, device),
        "train_file": train_file, "data_manifest_sha256": sha256_of(program.root / run.data / "manifest.json"),
        "hardware": hardware(device), "status": "done",
    }
    log = folder / "log.txt"
    try:
        _, record["peak_memory_bytes"] = program.measured(log, device, "train", f"{out}/train.json", "--resume")
        record["train"] = read_metrics(folder / "metrics.jsonl")
        checkpoint = f"{out}/{newest_checkpoint(folder).name}"
        results = f"{out}/eval.json"
        program.measured(log, device, "eval", checkpoint, *evaluations(run, size, corpus),
                         "--device", device, "--dtype", train_file["dtype"], "--batch-tokens", "32768",
                         "--limit", str(size.limit), "--out", results)
        evaluated = json.loads((program.root / results).read_text())
        record["eval"] = {key: evaluated[key] for key in ("program", "seed", "limit", "batch_tokens", "results")}
        record["weights_sha256"] = evaluated["model"]["weights_sha256"]
    except Failure as failure:
        record["status"] = "failed"
        record["error"] = str(failure)
        if (folder / "metrics.jsonl").exists():
            record["train"] = read_metrics(folder / "metrics.jsonl")
    return record
