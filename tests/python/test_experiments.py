"""The plan of the comparison and its report, on records made up here."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from train_runs import MDN

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments import compare, plan, report, runner, svg  # noqa: E402
from experiments.parameters import count  # noqa: E402

# The published sizes.
PUBLISHED = {
    "mdn_400m": 417_537_012, "mdn_1.3b": 1_462_646_004, "mdn_hybrid_3_1": 430_946_400,
    "mdn_hybrid_7_1": 434_227_824, "gdn_400m": 417_278_460, "gdn_1.3b": 1_462_129_404,
    "gdn_hybrid_3_1": 430_650_912, "kda_400m": 424_384_704, "kda_1.3b": 1_465_722_240,
    "kda_hybrid_3_1": 421_102_992, "comba_400m": 417_278_712, "comba_1.3b": 1_462_129_656,
    "comba_hybrid_3_1": 430_651_200, "mamba2_400m": 419_778_048, "mamba2_1.3b": 1_446_620_160,
    "transformer_400m": 411_257_856, "transformer_1.3b": 1_439_078_400,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_parameters_of_published_configs(name):
    assert count(json.loads((ROOT / "configs" / f"{name}.json").read_text())) == PUBLISHED[name]


@pytest.mark.parametrize("size", plan.SIZES)
def test_runs_of_a_task_have_equal_parameters_tokens_and_recipe(size):
    runs = plan.make_plan(size)
    assert len({run.name for run in runs}) == len(runs)
    groups = {}
    for run in runs:
        groups.setdefault((run.task, run.width), []).append(run)
    for group in groups.values():
        counts = [run.parameters for run in group]
        assert max(counts) <= 1.02 * min(counts), {run.name: run.parameters for run in group}
        recipes, rates = set(), {}
        for run in group:
            file = run.train_file("out", "cuda")
            rate = file.pop("learning_rate")
            for key in ("model", "seed", "data_seed"):
                del file[key]
            recipes.add(json.dumps(file, sort_keys=True))
            rates.setdefault(rate, set()).add(run.model)
        assert len(recipes) == 1
        assert list(rates) and all(models == set(plan.FAMILIES) for models in list(rates.values())[1:])
        assert len({run.config["vocab_size"] for run in group}) == 1
        seeds = {run.seed for run in group}
        assert all(run.train_file("out", "cuda")["data_seed"] == run.seed for run in group) and 0 in seeds


@pytest.mark.parametrize("size", plan.SIZES)
def test_made_up_tasks_have_data_for_their_rows(size):
    """Rows are whole examples, and beyond the tiny size no example comes twice."""
    for task in plan.SIZES[size].synthetic:
        assert all(run.train_file("out", "cpu")["order"] == "documents" for run in plan.make_plan(size)
                   if run.task == task.name)
        lengths = [int(re.search(r"length=(\d+)", spec)[1]) for spec, _ in task.train]
        assert max(lengths) == task.training.length
        if size != "tiny":
            assert task.training.steps * task.training.rows <= sum(examples for _, examples in task.train)


@pytest.mark.parametrize("size", plan.SIZES)
def test_every_architecture_and_the_closest_pair_are_there(size):
    runs = [run for run in plan.make_plan(size) if run.task == "lm"]
    assert {run.config["model_type"] for run in runs} == {
        "momentum_deltanet", "gated_deltanet", "comba", "kda", "mamba2", "transformer"}
    for model in ("mdn", "gdn"):
        assert sum(run.model == model for run in runs) >= 2


def test_refuses_a_shape_that_cannot_be_equal():
    with pytest.raises(ValueError, match="at most 2% is allowed"):
        plan.solved_config(plan.FAMILIES["transformer"], plan.Shape(64, 20, 2, 256, head_dim=32, state_size=32,
                                                                    attention_head_dim=32))


def test_another_recipe_is_another_key():
    run = plan.make_plan("tiny")[0]
    assert plan.recipe_key(run, "cuda:0") == plan.recipe_key(run, "cuda:1")
    assert plan.recipe_key(run, "cpu") != plan.recipe_key(run, "cuda")


def perplexity(window, loss, **where):
    return {"task": f"perplexity:window={window}", "settings": {"window": window, **where},
            "metrics": {"token_perplexity": {"value": 2.718281828459045**loss}, "bits_per_byte": {"value": 1.5}}}


def accuracy(task, value, **settings):
    return {"task": f"{task}:length=64", "settings": settings, "metrics": {"acc": {"value": value}}}


def made_up_record(run, loss):
    length = plan.SIZES["tiny"].training.length
    if run.task == "lm":
        results = [perplexity(length, loss, data="d"), perplexity(4 * length, loss - 0.125, data="d"),
                   perplexity(length, loss + 1, file="f"), perplexity(4 * length, loss + 0.875, file="f"),
                   accuracy("niah_single_1", 0.25, length=512)]
    elif run.task == "mqar":
        results = [accuracy("mqar", 0.5, pairs=4, length=64), accuracy("mqar", 0.125, pairs=8, length=64)]
    else:
        results = [accuracy(run.task, 0.75, length=32), accuracy(run.task, 0.625, length=64)]
    return {
        "format": runner.RECORD_FORMAT, "version": runner.RECORD_VERSION, "name": run.name, "model": run.model,
        "task": run.task, "width": run.width, "seed": run.seed, "parameters": run.parameters,
        "key": plan.recipe_key(run, "cpu"), "hardware": "made up", "status": "done", "peak_memory_bytes": 3 << 30,
        "train": {"tokens": 1000, "seconds": 10, "tokens_per_second": 12345, "skipped_steps": 0,
                  "train_curve": [[100 * i, loss + 3 / i] for i in range(1, 11)], "held_out_curve": [[10, loss]],
                  "held_out_loss": loss},
        "train_file": run.train_file("out", "cpu"), "seconds": 10, "train_seconds": 8, "eval_seconds": 2,
        "eval": {"dtype": "float32", "results": results},
    }


@pytest.fixture
def results(tmp_path):
    """Records of the tiny plan: one run failed, one is missing."""
    raw = tmp_path / "comparison" / "raw"
    raw.mkdir(parents=True)
    for run in plan.make_plan("tiny"):
        losses = {"lm-mdn-s1": 2.25, "lm-gdn-s0": 2.128, "lm-gdn-s1": 2.25, "lm-mamba2-s0": 2.5}
        record = made_up_record(run, losses.get(run.name, 2.0))
        if run.name == "lm-kda-s0":
            record = {**record, "status": "failed", "error": "the loss is not finite"}
            del record["eval"]
        if run.name != "lm-comba-s0":
            (raw / f"{run.name}.json").write_text(json.dumps(record))
    return tmp_path / "comparison"


def row_of(text, title):
    return next(line for line in text.splitlines() if line.startswith(f"| {title} |"))


def test_report_tells_all_that_the_records_hold(results):
    report.write_report("tiny", results / "raw", results.with_suffix(".md"))
    text = results.with_suffix(".md").read_text()
    mdn = [cell.strip() for cell in row_of(text, "MDN").split("|")]
    assert mdn[3:8] == ["2", "2.125 (2.000–2.250)", "2.000 (1.875–2.125)", "3.125 (3.000–3.250)",
                        "3.000 (2.875–3.125)"]
    assert mdn[8:11] == ["1.500 (1.500–1.500)", "12,345", "3.00"]
    assert "0 (failed)" in row_of(text, "KDA")
    assert "- failed: `lm-kda-s0`: the loss is not finite" in text
    assert "- not run: `lm-comba-s0`" in text
    assert row_of(text, "MDN, width 032") == "| MDN, width 032 | 50.0 | 12.5 |"
    tracking = text[text.index("## State tracking"):]
    assert row_of(tracking, "MDN") == "| MDN | 75.0 | 62.5 |"
    assert "no momentum" in text
    differences = text[text.index("### Differences from MDN"):]
    assert "differ by up to 0.250" in differences
    assert row_of(differences, "GDN") == "| GDN | 2 | +0.064 (+0.000 to +0.128) | +0.064 (+0.000 to +0.128) | no |"
    assert row_of(differences, "Mamba2") == "| Mamba2 | 1 | +0.500 | +0.500 | worse |"
    assert "## What it shows" not in text
    for picture in re.findall(r"\]\((.*?\.svg)\)", text):
        root = ElementTree.parse(results.parent / picture).getroot()
        assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) >= 2


def test_report_compares_learning_rates(results):
    for name, rate, value in (("lm-mdn-s0", 0.1, 1.875), ("mqar-gdn-d32-s0", 0.1, 0.75)):
        record = json.loads((results / "raw" / f"{name}.json").read_text())
        record["train_file"]["learning_rate"] = rate
        if record["task"] == "lm":
            record["eval"]["results"] = [perplexity(128, value, data="d")]
        else:
            record["eval"]["results"] = [accuracy("mqar", value, pairs=4, length=64)]
        record["name"] = name.replace("-s0", f"-r{rate}-s0")
        (results / "raw" / f"{record['name']}.json").write_text(json.dumps(record))
    report.write_report("tiny", results / "raw", results.with_suffix(".md"))
    text = results.with_suffix(".md").read_text()
    assert row_of(text, "MDN").split("|")[3].strip() == "2"  # seeds: other rates are not among them
    assert row_of(text[text.index("### Learning rates"):], "MDN") == "| MDN | 2.000 | 1.875 |"
    assert "| GDN, width 032 | 50.0 | 12.5 |" in text
    assert "| GDN, width 032, rate 0.1 | 75.0 | — |" in text
    assert "| MDN, width 032, rate 0.002 | 50.0 | 12.5 |" in text


def test_report_takes_in_what_was_typed(results):
    (results / "summary.md").write_text("MDN is ahead.\n")
    report.write_report("tiny", results / "raw", results.with_suffix(".md"))
    assert "## What it shows\n\nMDN is ahead.\n\n" in results.with_suffix(".md").read_text()


def test_report_refuses_other_records_and_none(results, tmp_path):
    (results / "raw" / "other.json").write_text('{"format": "other"}')
    with pytest.raises(SystemExit, match="other.json: is no mdn-comparison-run"):
        report.write_report("tiny", results / "raw", tmp_path / "page.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="holds no records"):
        report.write_report("tiny", tmp_path / "empty", tmp_path / "page.md")


def test_dry_run_prints_the_plan_and_what_is_done(results, capsys):
    assert compare.main(["--size", "tiny", "--dry-run", "--results", str(results)]) == 0
    text = capsys.readouterr().out
    assert "13 runs, 12 of them settled" in text
    assert re.search(r"lm-kda-s0 .* failed", text)
    assert re.search(r"lm-comba-s0\s+[\d,]+\s+[+-]0\.\d\d%\s+16,384\s+16\s+\d+ s", text)
    assert re.search(r"lm-mdn-s0 .* done", text)


def test_only_names_what_does_not_match():
    with pytest.raises(SystemExit, match="no run's name contains"):
        compare.main(["--only", "nothing", "--dry-run"])


# ---- carrying out ----


class Recorder:
    """Stands for runner.carry_out: takes time and notes what went on beside what."""

    def __init__(self):
        self.lock, self.now, self.seen = threading.Lock(), {}, []

    def __call__(self, program, run, size, device, together, work, corpus, data):
        with self.lock:
            self.now.setdefault(device, []).append(run)
            self.seen.append((run.name, device, [r.task for r in self.now[device]]))
        time.sleep(0.05)
        with self.lock:
            self.now[device].remove(run)
        return made_up_record(run, 2.0)


def campaign(tmp_path, monkeypatch, share, deadline=None):
    monkeypatch.setattr(runner.SyntheticData, "make", lambda *_: None)
    recorder = Recorder()
    monkeypatch.setattr(compare, "carry_out", recorder)
    program = runner.Program("none", tmp_path)
    return compare.Campaign(program, plan.SIZES["tiny"], "work", tmp_path, tmp_path, share, deadline), recorder


def test_devices_share_small_runs_and_leave_language_models_alone(tmp_path, monkeypatch):
    runs = plan.make_plan("tiny")
    many = runs + [dataclasses.replace(run, name=f"{run.name}-{i}") for run in runs for i in range(2)
                   if run.task != "lm"]
    work, recorder = campaign(tmp_path, monkeypatch, share=3)
    work.carry_out(many, ["cuda:0", "cuda:1"])
    assert sorted(name for name, _, _ in recorder.seen) == sorted(run.name for run in many)
    assert {device for _, device, _ in recorder.seen} == {"cuda:0", "cuda:1"}
    beside = [tasks for _, _, tasks in recorder.seen]
    assert all(len(tasks) == 1 for tasks in beside if "lm" in tasks)
    assert max(map(len, beside)) == 3
    first = [run.name for run in runs if run.round == 0]
    assert sorted(name for name, _, _ in recorder.seen[: len(first)]) == sorted(first)


def test_a_budget_leaves_out_what_does_not_fit(tmp_path, monkeypatch):
    runs = [run for run in plan.make_plan("tiny") if run.task == "lm"]
    work, recorder = campaign(tmp_path, monkeypatch, share=1, deadline=time.monotonic() + 30)
    for run in runs:
        model = run.config["model_type"]
        work.seconds[plan.kind_of("lm", run.width, run.config)] = 1e6 if model in ("kda", "mamba2") else 1
    work.carry_out(runs, ["cpu"])
    assert work.left == ["lm-kda-s0", "lm-mamba2-s0"] or work.left == ["lm-mamba2-s0", "lm-kda-s0"]
    assert len(recorder.seen) == len(runs) - 2


def test_a_workers_error_ends_the_campaign(tmp_path, monkeypatch):
    work, _ = campaign(tmp_path, monkeypatch, share=2)

    def fails(*_):
        raise OSError("no space")

    monkeypatch.setattr(compare, "carry_out", fails)
    with pytest.raises(OSError, match="no space"):
        work.carry_out(plan.make_plan("tiny"), ["cpu"])


def test_cards_are_those_that_the_environment_shows(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert runner.card_of("cpu") is None and runner.card_of("cuda") == "0" and runner.card_of("cuda:3") == "3"
    assert runner.environment("cuda:3")["CUDA_VISIBLE_DEVICES"] == "3"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-1f")
    assert runner.card_of("cuda:1") == "GPU-1f"


def test_refuses_a_device_twice():
    with pytest.raises(SystemExit, match="each device once"):
        compare.main(["--device", "cpu", "--device", "cpu", "--dry-run"])


@pytest.fixture
def small_comparison(tmp_path, monkeypatch):
    """A plan of seconds in the place of the tiny size, its data, and the command on it."""
    shape = plan.Shape(32, 1, 2, 256, head_dim=16, state_size=16, attention_head_dim=16)
    size = dataclasses.replace(
        plan.SIZES["tiny"], shape=shape,
        training=plan.Training(16 * 128, 4, 32, 3e-3, eval_tokens=256, checkpoints=2),
        language=[["mdn", "gdn"], ["mdn"]], examples=2, limit=2, needles=[512],
        synthetic=[plan.Synthetic("parity", [("parity:length=16,vocab=256", 40)],
                                  ["parity:length=16,vocab=256,extrapolate=2"], [shape],
                                  plan.Training(4 * 64, 4, 16, 1e-3, eval_tokens=64), ["mdn", "gdn"])])
    monkeypatch.setitem(plan.SIZES, "tiny", size)
    monkeypatch.setattr(compare, "GRACE", 1)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    texts = [f"document {i}: the cat sat on the mat and the dog ran after it, " * 4 for i in range(60)]
    (corpus / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    subprocess.run([MDN, "data", corpus / "texts.jsonl", "--out", corpus / "bytes", "--split", "document",
                    "--val-fraction", "0.1"], check=True, capture_output=True)
    if shutil.which("zstd"):
        subprocess.run(["zstd", "-q", corpus / "texts.jsonl", "-o", corpus / "held_out_long.jsonl.zst"], check=True)

    def command(*arguments):
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            return compare.main(["--mdn", str(MDN), "--corpus", str(corpus), "--work", str(tmp_path / "work"),
                                 "--results", str(tmp_path / "results" / "comparison"), *arguments])
        finally:
            for number, handler in zip((signal.SIGINT, signal.SIGTERM), handlers):
                signal.signal(number, handler)

    command.folder, command.size = tmp_path, size
    return command


def test_a_plan_from_training_to_the_page(small_comparison, capsys):
    assert small_comparison("--share", "2") == 0
    said = capsys.readouterr().out
    records = report.read_records(small_comparison.folder / "results" / "comparison" / "raw")
    assert sorted(r["name"] for r in records) == ["lm-gdn-s0", "lm-mdn-s0", "lm-mdn-s1", "parity-gdn-d32-s0",
                                                  "parity-mdn-d32-s0"]
    for record in records:
        assert record["status"] == "done" and f"{record['name']}: " in said
        assert record["train"]["train_curve"] and record["peak_memory_bytes"] > 1 << 20
        assert all(key in record for key in ("weights_sha256", "data_manifest_sha256", "eval", "hardware"))
    page = small_comparison.folder / "results" / "comparison.md"
    text = page.read_text()
    assert "Nothing: every run of the plan is here." in text
    row = row_of(text, "MDN").split("|")
    assert all(re.fullmatch(r" \d+\.\d{3} \(\d+\.\d{3}–\d+\.\d{3}\) ", cell) for cell in row[4:6])
    assert "parity / 32" in text and "niah_single_2 / 512" in text and "### Differences from MDN" in text
    assert (page.parent / "comparison" / "curves.svg").exists()
    # Nothing is done twice.
    assert small_comparison() == 0
    assert " on cpu" not in capsys.readouterr().out and page.read_text() == text


def test_a_failed_run_is_recorded_and_not_repeated(small_comparison, capsys, monkeypatch):
    broken = dataclasses.replace(small_comparison.size.training, learning_rate=1e30)
    monkeypatch.setitem(plan.SIZES, "tiny", dataclasses.replace(small_comparison.size, training=broken))
    assert small_comparison("--only", "lm-gdn") == 1
    assert "lm-gdn-s0: FAILED: " in capsys.readouterr().out
    text = (small_comparison.folder / "results" / "comparison.md").read_text()
    assert "- failed: `lm-gdn-s0`: " in text and "is not finite" in text
    assert small_comparison("--only", "lm-gdn") == 1
    assert "FAILED" not in capsys.readouterr().out


def test_an_interrupted_run_goes_on(small_comparison, capsys, monkeypatch):
    longer = dataclasses.replace(small_comparison.size.training, tokens=3 * 10**5)
    monkeypatch.setitem(plan.SIZES, "tiny", dataclasses.replace(small_comparison.size, training=longer))
    folder = small_comparison.folder / "work" / "tiny" / "runs" / "lm-gdn-s0"

    def interrupt(after):
        """Once there are steps after the given one."""
        file = folder / "metrics.jsonl"
        while not file.exists() or not any(
                int(step) > after for step in re.findall(r'"step":(\d+),"kind":"train"', file.read_text())):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    reached = 0
    for _ in range(2):
        threading.Thread(target=interrupt, args=(reached,), daemon=True).start()
        assert small_comparison("--only", "lm-gdn") == 1
        assert "lm-gdn-s0: stopped" in capsys.readouterr().out
        (checkpoint,) = folder.glob("step-*")
        assert int(checkpoint.name.removeprefix("step-")) > reached
        reached = int(checkpoint.name.removeprefix("step-"))
    assert "resuming" in (folder / "log.txt").read_text()


def test_a_stopped_command_ends(tmp_path, monkeypatch):
    """What the end of a budget does: the command is told to end, and made to when it does not."""
    monkeypatch.setattr(runner, "GRACE", 0.5)
    for name, trap in (("obeys", ""), ("does not", "trap '' TERM; ")):
        program = tmp_path / name
        program.write_text(f"#!/bin/bash\n{trap}for i in {{1..600}}; do sleep 0.1; done\n")
        program.chmod(0o755)
        stopping = runner.Program(str(program), tmp_path)
        threading.Timer(0.3, stopping.stop.set).start()
        begin = time.monotonic()
        with pytest.raises(runner.Stopped):
            stopping.measured(tmp_path / "log", "cpu", "train")
        assert time.monotonic() - begin < 30


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 1.0), (1.93, 2.41), (0, 49_971_200), (-3.0, 7.5)):
        values = svg.ticks(low, high, 8)
        assert 3 <= len(values) <= 9
        assert all(low <= value <= high + 1e-9 for value in values)


def test_module_runs_from_the_root():
    done = subprocess.run([sys.executable, "-m", "experiments.compare", "--dry-run", "--size", "small"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "lm-transformer-s0" in done.stdout, done.stderr
