"""The plan of the comparison and its report, on records made up here."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

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
        recipes = set()
        for run in group:
            file = run.train_file("out", "cuda")
            for key in ("model", "seed", "data_seed"):
                del file[key]
            recipes.add(json.dumps(file, sort_keys=True))
        assert len(recipes) == 1
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
            "metrics": {"token_perplexity": {"value": 2.718281828459045**loss}}}


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
                  "held_out_loss": loss, "bits_per_byte": 1.5},
        "eval": {"results": results},
    }


@pytest.fixture
def results(tmp_path):
    """Records of the tiny plan: one run failed, one is missing."""
    raw = tmp_path / "comparison" / "raw"
    raw.mkdir(parents=True)
    for run in plan.make_plan("tiny"):
        record = made_up_record(run, 2.25 if run.name == "lm-mdn-s1" else 2.0)
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
    assert mdn[9:11] == ["12,345", "3.00"]
    assert "failed: the loss is not finite" in row_of(text, "KDA")
    assert "- failed: `lm-kda-s0`: the loss is not finite" in text
    assert "- not run: `lm-comba-s0`" in text
    assert row_of(text, "MDN, width 032") == "| MDN, width 032 | 50.0 | 12.5 |"
    tracking = text[text.index("## State tracking"):]
    assert row_of(tracking, "MDN") == "| MDN | 75.0 | 62.5 |"
    assert "no momentum" in text
    for picture in re.findall(r"\]\((.*?\.svg)\)", text):
        root = ElementTree.parse(results.parent / picture).getroot()
        assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) >= 2


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
    assert "13 runs, 11 of them done" in text
    assert re.search(r"lm-comba-s0\s+[\d,]+\s+[+-]0\.\d\d%\s+16,384\s+16\s+\d+ s", text)
    assert re.search(r"lm-mdn-s0 .* done", text)


def test_only_names_what_does_not_match():
    with pytest.raises(SystemExit, match="no run's name contains"):
        compare.main(["--only", "nothing", "--dry-run"])


def test_ticks_are_round_and_inside():
    for low, high in ((0.0, 1.0), (1.93, 2.41), (0, 49_971_200), (-3.0, 7.5)):
        values = svg.ticks(low, high, 8)
        assert 3 <= len(values) <= 9
        assert all(low <= value <= high + 1e-9 for value in values)


def test_module_runs_from_the_root():
    done = subprocess.run([sys.executable, "-m", "experiments.compare", "--dry-run", "--size", "small"], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0 and "lm-transformer-s0" in done.stdout, done.stderr
