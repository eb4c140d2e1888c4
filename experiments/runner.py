"""Carries out runs with the program mdn: training, evaluation, one JSON record each."""

import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

from .plan import Run, Size, recipe_key, synthetic_folder

RECORD_FORMAT, RECORD_VERSION = "mdn-comparison-run", 1
CURVE_POINTS = 100
GRACE = 8  # seconds that a stopped command has for its checkpoint
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}  # exit statuses of mdn train


class Failure(Exception):
    """A command of the program that ended with an error."""


class Stopped(Exception):
    """A command that was told to end before its work was done. There is nothing to record."""


class Program:
    """The program mdn, run in the repository's root so that paths in records are relative. `stop` ends the
    commands in flight."""

    def __init__(self, path: str, root: Path):
        self.path, self.root = path, root
        self.stop = threading.Event()

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
        with log.open("a") as file, DeviceMemory(device) as memory:
            process = subprocess.Popen([self.path, *map(str, arguments)], cwd=self.root, stdout=file,
                                       stderr=subprocess.STDOUT, env=environment(device), start_new_session=True)
            status, usage = self._wait(process)
        if status in STOPPED or (status < 0 and self.stop.is_set()):
            raise Stopped
        if status != 0:
            raise Failure(last_line(log.read_text()) or f"exit status {status}")
        return time.monotonic() - start, memory.peak or usage.ru_maxrss * 1024

    def _wait(self, process: subprocess.Popen) -> tuple[int, "os.struct_rusage"]:
        """The command's exit status and what it used; once `stop` is set it is told to end, then made to."""
        told = None
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                process.returncode = os.waitstatus_to_exitcode(status)
                return process.returncode, usage
            if self.stop.is_set():
                if told is None:
                    told = time.monotonic()
                    process.terminate()
                elif time.monotonic() - told > GRACE:
                    process.kill()
            time.sleep(0.05)


def card_of(device: str) -> str | None:
    """What CUDA_VISIBLE_DEVICES and nvidia-smi call the card of cuda or cuda:N; None for the CPU."""
    if not device.startswith("cuda"):
        return None
    index = int(device.partition(":")[2] or 0)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)


def environment(device: str) -> dict[str, str]:
    """A command sees its own card alone, so that it takes no memory of the others."""
    card = card_of(device)
    return {**os.environ, "CUDA_VISIBLE_DEVICES": card} if card is not None else dict(os.environ)


class DeviceMemory:
    """Samples what the card holds beyond what it held before: the largest of readings twice a second. Absent on
    the CPU, where the kernel counts."""

    def __init__(self, device: str):
        self.card = card_of(device)
        self.peak = 0
        self.done = threading.Event()

    def __enter__(self):
        if self.card is not None:
            self.before = self._read()
            self.thread = threading.Thread(target=self._watch, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        if self.card is not None:
            self.thread.join()

    def _read(self) -> int:
        text = subprocess.run(["nvidia-smi", f"--id={self.card}", "--query-gpu=memory.used",
                               "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True).stdout
        return int(text.split()[0]) << 20

    def _watch(self):
        while not self.done.wait(0.5):
            now = self._read()
            self.before = min(self.before, now)  # what an earlier process had was perhaps still being freed
            self.peak = max(self.peak, now - self.before)


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def last_line(text: str) -> str:
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    return re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", lines[-1]).strip() if lines else ""


def hardware(device: str) -> str:
    card = card_of(device)
    if card is not None:
        return subprocess.run(["nvidia-smi", f"--id={card}", "--query-gpu=name", "--format=csv,noheader"],
                              capture_output=True, text=True, check=True).stdout.strip()
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return f"{match[1] if match else 'CPU'}, {os.cpu_count()} cores"


class SyntheticData:
    """The training examples of the made-up tasks, each made once, when the first run asks for it or before."""

    def __init__(self, program: Program, size: Size, work: str):
        self.program, self.work = program, work
        self.tasks = {task.name: task for task in size.synthetic}
        self.locks = {name: threading.Lock() for name in self.tasks}

    def make(self, name: str) -> None:
        task = self.tasks[name]
        folder = f"{self.work}/data/{synthetic_folder(task)}"
        with self.locks[name]:
            if not (self.program.root / folder / "manifest.json").exists():
                specs = [f"{spec},examples={examples}" for spec, examples in task.train]
                self.program.output("synth", *specs, "--out", folder)


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


def carry_out(program: Program, run: Run, size: Size, device: str, together: int, work: str, corpus: Path,
              data: SyntheticData) -> dict:
    """Trains, going on where an interrupted call stopped, and evaluates. The record tells of failures too.
    `together`: how many runs share the device."""
    start = time.monotonic()
    out = f"{work}/runs/{run.name}"
    folder = program.root / out
    folder.mkdir(parents=True, exist_ok=True)
    train_file = run.train_file(out, device.partition(":")[0])
    (folder / "train.json").write_text(json.dumps(train_file, indent=1))
    record = {
        "format": RECORD_FORMAT, "version": RECORD_VERSION, "name": run.name, "model": run.model, "task": run.task,
        "width": run.width, "seed": run.seed, "parameters": run.parameters, "key": recipe_key(run, device),
        "train_file": train_file, "hardware": hardware(device), "together": together, "status": "done",
    }
    log = folder / "log.txt"
    try:
        if run.task != "lm":
            data.make(run.task)
            start = time.monotonic()  # the data are there for all
        record["data_manifest_sha256"] = sha256_of(program.root / run.data / "manifest.json")
        trained = (folder / f"step-{run.training.steps:08d}").exists()  # by an earlier call
        record["train_seconds"], memory = program.measured(log, device, "train", f"{out}/train.json", "--resume")
        record["peak_memory_bytes"] = None if trained else memory
        record["train"] = read_metrics(folder / "metrics.jsonl")
        results = f"{out}/eval.json"
        record["eval_seconds"], _ = program.measured(
            log, device, "eval", out, *evaluations(run, size, corpus), "--device", train_file["device"],
            "--batch-tokens", "32768", "--limit", str(size.limit), "--out", results)
        evaluated = json.loads((program.root / results).read_text())
        record["eval"] = {key: evaluated[key]
                          for key in ("program", "dtype", "seed", "limit", "batch_tokens", "results")}
        record["weights_sha256"] = evaluated["model"]["weights_sha256"]
    except Failure as failure:
        record["status"] = "failed"
        record["error"] = str(failure)
        if (folder / "metrics.jsonl").exists():
            record["train"] = read_metrics(folder / "metrics.jsonl")
    record["seconds"] = time.monotonic() - start
    return record
