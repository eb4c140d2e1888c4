"""mdn eval and mdn synth from the command line."""

import hashlib
import json
import math
import statistics

import pytest
from train_runs import TINY_MODEL, checkpoints, make_data, mdn, metrics, write_config

PIQA = [
    {"goal": "To open a jar", "sol1": "twist the lid.", "sol2": "hit the table.", "label": 0},
    {"goal": "To cool soup", "sol1": "put it on the stove", "sol2": "wait", "label": 1},
    {"goal": "To dry hair", "sol1": "use a towel", "sol2": "use a hose", "label": 0},
]


def jsonl(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model trained for a moment, its data, and the held-out loss that the trainer measured."""
    folder = tmp_path_factory.mktemp("run")
    make_data(folder, "the cat sat on the mat and the dog ran after it\n" * 60)
    config = write_config(folder, max_steps=4, final_eval_tokens=0, eval_length=41, eval_rows=4)
    done = mdn("train", config)
    assert done.returncode == 0, done.stderr
    loss = metrics(folder / "out", "eval")[-1]["loss"]
    return {"folder": folder, "model": checkpoints(folder / "out")[-1], "loss": loss}


def evaluate(run, *arguments):
    out = run["folder"] / "results.json"
    done = mdn("eval", run["model"], *arguments, "--out", out)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout


def failure(*arguments):
    done = mdn("eval", *arguments)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("mdn: "), done.stderr
    return done.stderr


def test_help_teaches():
    done = mdn("eval", "--help")
    assert done.returncode == 0
    assert "Examples: mdn eval" in done.stdout
    listed = mdn("eval", "--list").stdout
    for name in ("perplexity:", "hellaswag:", "lambada:", "mqar:", "niah_multiquery:"):
        assert name in listed


def test_a_runs_folder_stands_for_its_newest_checkpoint(run):
    task = f"perplexity:data={run['folder'] / 'data'},window=41"
    of_checkpoint, _ = evaluate(run, task)
    of_run, _ = evaluate({**run, "model": run["folder"] / "out"}, task)
    assert of_run["model"] == of_checkpoint["model"]
    assert of_run["results"][0]["metrics"] == of_checkpoint["results"][0]["metrics"]
    assert "no model here" in failure(run["folder"] / "data", task)


def test_perplexity_is_the_trainers_held_out_loss(run):
    # Disjoint windows of the trainer's row length, the first byte as context: the same predictions,
    # where the windows divide the text (287 = 7 * 41; a shorter last one would have more context).
    task = f"perplexity:data={run['folder'] / 'data'},window=41"
    results, _ = evaluate(run, task)
    assert results["results"][0]["settings"]["predicted"]["tokens"] == 287
    value = results["results"][0]["metrics"]["token_perplexity"]["value"]
    # float32 means over about 300 targets, taken in two orders
    assert math.log(value) == pytest.approx(run["loss"], rel=1e-5)


def test_results_can_be_repeated(run):
    text = run["folder"] / "book.txt"
    text.write_text("the cat ran after the dog\n" * 5)
    arguments = [f"perplexity:file={text},window=16,stride=4", "mqar:length=32,pairs=4,examples=9"]
    results, _ = evaluate(run, *arguments, "--seed", 3)
    assert results["command"] == [str(run["model"]), *arguments, "--seed", "3", "--out"] + [
        str(run["folder"] / "results.json")
    ]
    config = (run["model"] / "config.json").read_bytes()
    weights = (run["model"] / "model.safetensors").read_bytes()
    assert results["model"]["config_sha256"] == hashlib.sha256(config).hexdigest()
    assert results["model"]["weights_sha256"] == {
        "model.safetensors": hashlib.sha256(weights).hexdigest()
    }
    tokenizer = (run["model"] / "tokenizer.json").read_bytes()
    assert results["tokenizer_sha256"] == hashlib.sha256(tokenizer).hexdigest()
    first = results["results"][0]
    assert first["settings"]["sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    again, _ = evaluate(run, *results["command"][1:-2])
    for a, b in zip(results["results"], again["results"]):
        assert a["metrics"] == b["metrics"]


def test_questions_follow_from_their_samples(run):
    path = jsonl(run["folder"] / "piqa.jsonl", PIQA)
    samples = run["folder"] / "samples.jsonl"
    results, table = evaluate(run, f"piqa:file={path}", "--samples", samples)
    right = {"acc": [], "acc_norm": [], "acc_bytes": []}
    lines = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [line["requests"][0][0] for line in lines] == [
        f"Question: {question['goal']}\nAnswer:" for question in PIQA
    ]
    for line in lines:
        scores = line["log_likelihoods"]
        lengths = [len(choice) for choice in line["choices"]]
        per_character = [s / n for s, n in zip(scores, lengths)]
        right["acc"].append(scores.index(max(scores)) == line["gold"])
        right["acc_norm"].append(per_character.index(max(per_character)) == line["gold"])
        right["acc_bytes"].append(right["acc_norm"][-1])  # the choices are ASCII
    for name, values in right.items():
        metric = results["results"][0]["metrics"][name]
        assert metric["value"] == pytest.approx(statistics.mean(values))
        assert metric["stderr"] == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)))
        assert name in table


def test_limit_and_extrapolation(run):
    results, _ = evaluate(run, "parity:length=8,extrapolate=16", "--limit", 5)
    tasks = [result["task"] for result in results["results"]]
    assert tasks == [f"parity:length={8 * times}" for times in (1, 2, 4, 8, 16)]
    assert all(result["samples"] == 5 for result in results["results"])


def test_made_up_data_trains(tmp_path):
    done = mdn(
        *["synth", "mqar:length=16,pairs=2,vocab=300", "--out", tmp_path / "data"],
        *["--examples", 40, "--val-examples", 8],
    )
    assert done.returncode == 0, done.stderr
    model = TINY_MODEL | {"vocab_size": 300}
    config = write_config(tmp_path, model=model, order="documents", max_steps=3)
    done = mdn("train", config)
    assert done.returncode == 0, done.stderr
    last = checkpoints(tmp_path / "out")[-1]
    done = mdn("eval", last, "mqar:length=16,pairs=2,vocab=300,examples=10")
    assert done.returncode == 0, done.stderr
    # Rows that cut examples are refused.
    done = mdn("train", config, "--order", "packed", "--overwrite")
    assert done.returncode == 1
    assert "order documents" in done.stderr


def test_errors_say_where(run):
    model, folder = run["model"], run["folder"]
    assert "'hellaswagg'" in failure(model, "hellaswagg:file=x")
    assert "hellaswag" in failure(model, "hellaswagg:file=x")
    assert "mdn eval --list" in failure(model)
    renamed = jsonl(folder / "renamed.jsonl", [PIQA[0], {"question": "?", **PIQA[1]} | {"goal": 3}])
    assert "renamed.jsonl:2" in failure(model, f"piqa:file={renamed}")
    outside = jsonl(folder / "outside.jsonl", [PIQA[0] | {"label": 2}])
    assert 'outside.jsonl:1: "label" is 2' in failure(model, f"piqa:file={outside}")
    empty = jsonl(folder / "empty.jsonl", [{"text": "x y"}, {"text": ""}])
    assert "empty.jsonl:2: the document is empty" in failure(model, f"perplexity:file={empty}")
    good = jsonl(folder / "good.jsonl", PIQA)
    assert "good.jsonl:1: the continuation has 15 tokens" in failure(
        model, f"piqa:file={good},window=4"
    )
    assert "nowhere" in failure(model, "piqa:file=nowhere.jsonl")
