"""mdn generate from the command line."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MDN = Path(os.environ.get("MDN_BUILD", ROOT / "build")) / "mdn"
GOLDEN = ROOT / "tests" / "data" / "goldens" / "mdn"


def mdn(*arguments, text=None):
    return subprocess.run(
        [MDN, *map(str, arguments)], input=text, capture_output=True, text=True, timeout=300
    )


def generate(*arguments, text=None):
    done = mdn("generate", *arguments, text=text)
    assert done.returncode == 0, done.stderr
    return done.stdout


def passages(*arguments):
    return [json.loads(line) for line in generate(*arguments, "--json").splitlines()]


def failure(*arguments, text=None):
    done = mdn("generate", *arguments, text=text)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    assert done.stderr.startswith("mdn: "), done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The golden model as a checkpoint: with its files' usual names and a byte tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(GOLDEN / "config.json", folder)
    shutil.copy(GOLDEN / "weights.safetensors", folder / "model.safetensors")
    text = folder / "text.txt"
    text.write_text("some words\n" * 200)
    done = mdn("data", text, "--out", folder / "data")
    assert done.returncode == 0, done.stderr
    shutil.copy(folder / "data" / "tokenizer.json", folder)
    return folder


def test_help_teaches():
    done = mdn("generate", "--help")
    assert done.returncode == 0
    assert "Examples: mdn generate" in done.stdout


def test_the_seed_decides(model):
    one = generate(model, "-p", "hello", "-n", 20, "--seed", 4)
    assert one == generate(model, "-p", "hello", "-n", 20, "--seed", 4)
    assert one != generate(model, "-p", "hello", "-n", 20, "--seed", 5)
    done = mdn("generate", model, "-p", "hello", "-n", 20)
    assert "prefill 4 tokens" in done.stderr and "decode 20 in" in done.stderr
    assert mdn("generate", model, "-p", "hello", "-n", 2, "--quiet").stderr == ""


def test_many_prompts_equal_one_by_one(model, tmp_path):
    texts = ["a", "hello", "something longer than a chunk of the model is " * 3, "hello", "é→😀"]
    plain = tmp_path / "prompts.txt"
    plain.write_text("\n".join(texts) + "\n")
    lines = tmp_path / "prompts.jsonl"
    lines.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    options = ("-n", 15, "--samples", 2, "--seed", 3)
    alone = [p for text in texts for p in passages(model, "-p", text, *options)]
    repeated = passages(model, *(x for text in texts for x in ("-p", text)), *options)
    for found in (
        repeated,
        passages(model, "--prompt-file", plain, *options, "--batch", 3),
        passages(model, "--prompt-file", lines, *options, "--batch", 1),
    ):
        assert [p["ids"] for p in found] == [p["ids"] for p in alone]
        assert [p["prompt"] for p in found] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert [p["sample"] for p in found] == [0, 1] * 5
    assert alone[2]["ids"] == alone[6]["ids"] != alone[3]["ids"]
    shown = generate(model, "--prompt-file", plain, "-n", 3)
    assert shown.count("=== prompt ") == 5


def test_jsonl_lines_may_set_seed_and_length(model, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"prompt": "a", "seed": 9, "max_tokens": 4}\n{"ids": [97], "max_tokens": 6}\n')
    found = passages(model, "--prompt-file", file, "--seed", 9)
    assert [len(p["ids"]) for p in found] == [4, 6]
    assert found[0]["ids"] == found[1]["ids"][:4]
    assert found[1]["prompt_ids"] == [97]


def test_saved_state_continues_exactly(model, tmp_path):
    state = tmp_path / "state"
    whole = passages(model, "-p", "hello", "-n", 30, "--seed", 8, "--repetition-penalty", 1.2)[0]
    options = ("--repetition-penalty", 1.2, "-n", 10)
    ids = passages(model, "-p", "hello", "--seed", 8, *options, "--save-state", state)[0]["ids"]
    for _ in range(2):
        more = passages(model, "--load-state", state, *options, "--save-state", state)
        ids += more[0]["ids"]
    assert ids == whole["ids"]
    assert state.stat().st_size < 200_000
    # A loaded state may be the common beginning of several prompts.
    generate(model, "-p", "common ", "-n", 0, "--save-state", state)
    both = passages(model, "--load-state", state, "-p", "one", "-p", "two", "-n", 8, "-t", 0)
    for found, text in zip(both, ("common one", "common two"), strict=True):
        assert found["ids"] == passages(model, "-p", text, "-n", 8, "-t", 0)[0]["ids"]


def test_stop_strings_and_end_tokens(model):
    options = ("-p", "x", "-n", 60, "--seed", 1)
    whole = passages(model, *options)[0]
    # the first three printable characters in a row: one token each, a stop across token borders
    stop = next(
        whole["text"][i : i + 3]
        for i in range(2, len(whole["text"]) - 3)
        if all(" " < c < "\x7f" for c in whole["text"][i : i + 3])
    )
    found = passages(model, *options, "--stop", stop)[0]
    assert found["finish"] == "stop-string" and found["stop"] == stop
    assert found["text"] == whole["text"][: whole["text"].index(stop)]
    assert generate(model, *options, "--stop", stop) == found["text"] + "\n"
    end = whole["ids"][20]
    found = passages(model, *options, "--eos", end)[0]
    assert found["finish"] == "end-token"
    assert found["ids"] == whole["ids"][: whole["ids"].index(end)]
    assert passages(model, *options, "--eos", end, "--ignore-eos")[0]["ids"] == whole["ids"]


def test_ids_without_a_tokenizer(model, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, tmp_path)
    found = passages(tmp_path, "--ids", "1 2,3", "-n", 5, "-t", 0)[0]
    assert len(found["ids"]) == 5 and "text" not in found
    shown = generate(tmp_path, "--ids", "1 2 3", "-n", 5, "-t", 0)
    assert shown.split() == [str(i) for i in found["ids"]]
    assert "there is no tokenizer.json" in failure(tmp_path, "-p", "text")
    assert "there is no tokenizer.json" in failure(tmp_path, "--ids", "1", "-p", "text")
    prompts = tmp_path / "ids.jsonl"
    prompts.write_text('{"ids": [1, 2, 3]}\n')
    assert passages(tmp_path, "--prompt-file", prompts, "-n", 5, "-t", 0)[0]["ids"] == found["ids"]
    state = tmp_path / "state"
    generate(tmp_path, "--ids", "1 2 3", "-n", 2, "-t", 0, "--save-state", state)
    assert passages(tmp_path, "--load-state", state, "-n", 3, "-t", 0)[0]["ids"] == found["ids"][2:]


def test_the_newest_checkpoint_is_taken(model, tmp_path):
    assert "no model here" in failure(tmp_path, "-p", "a")
    step = tmp_path / "step-000010"
    step.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(model / name, step)
    (tmp_path / "step-000020").mkdir()  # cut short: no config.json
    options = ("-p", "a", "-n", 5)
    assert generate(tmp_path, *options) == generate(model, *options)


def test_an_empty_prompt_is_a_newline(model):
    assert generate(model, "-p", "", "-n", 9) == generate(model, "-p", "\n", "-n", 9)


def test_echo(model):
    shown = generate(model, "-p", "hello", "-n", 4, "--echo")
    assert shown == "hello" + generate(model, "-p", "hello", "-n", 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to continue"),
        (("-p", "a", "-t", "-1"), "temperature is -1"),
        (("-p", "a", "--top-p", "0"), "top-p is 0"),
        (("-p", "a", "--top-k", "-2"), "top-k is -2"),
        (("-p", "a", "--min-p", "2"), "min-p is 2"),
        (("-p", "a", "--repetition-penalty", "0"), "repetition penalty is 0"),
        (("-p", "a", "--stop", ""), "stop string is empty"),
        (("-p", "a", "--eos", "256"), "--eos 256: the model's vocabulary is 256"),
        (("--ids", "1 256"), "token id 256 is not in the model's vocabulary of 256"),
        (("--ids", "-1"), "token id -1"),
        (("--ids", "one"), "'one' must be integers"),
        (("--ids", ""), "prompt 1 is empty"),
        (("--prompt-file", "/nonexistent"), "/nonexistent"),
        (("-p", "a", "-p", "b", "--save-state", "s"), "--save-state keeps one state"),
        (("-i", "-p", "a"), "--interactive reads its prompts"),
        (("-p", "a", "--load-state", GOLDEN / "weights.safetensors"), "not a saved state"),
        (("-p", "a", "--load-state", GOLDEN / "config.json"), "config.json"),
        (("-p", "a", "-n", "2", "--save-state", "/nonexistent/s"), "/nonexistent"),
    ],
)
def test_mistakes_are_named(model, arguments, message):
    assert message in failure(model, *arguments)


def test_wrong_folders_are_named(tmp_path):
    assert "no such folder" in failure(tmp_path / "none", "-p", "a")
    assert mdn("generate", "-p", "a").returncode != 0  # no folder at all


def test_states_of_other_models_are_refused(model, tmp_path):
    state = tmp_path / "state"
    generate(model, "-p", "hello", "-n", 3, "--save-state", state)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(model / name, other)
    content = (model / "model.safetensors").read_bytes()
    half = len(content) // 2
    (other / "model.safetensors").write_bytes(content[:half] + bytes(len(content) - half))
    assert "other weights" in failure(other, "--load-state", state)
    assert "--dtype" in failure(model, "--load-state", state, "--dtype", "float64")
    # another configuration
    plain = tmp_path / "plain"
    plain.mkdir()
    golden = GOLDEN.parent / "mdn_plain"
    shutil.copy(golden / "config.json", plain)
    shutil.copy(golden / "weights.safetensors", plain / "model.safetensors")
    assert str(state) in failure(plain, "--load-state", state, "--ids", "1")


def test_interactive(model, tmp_path):
    state = tmp_path / "state"
    lines = [
        "hello",
        f"/save {state}",
        "/more",
        "/show",
        f"/load {state}",
        "/more",
        "/set temperature -1",
        "/set max-tokens 3",
        "/nonsense",
        "/reset",
        "/more",
        "/quit",
        "never read",
    ]
    done = mdn("generate", model, "-i", "-n", 12, "--seed", 2, text="\n".join(lines) + "\n")
    assert done.returncode == 0
    first = generate(model, "-p", "hello\n", "-n", 12, "--seed", 2)
    whole = generate(model, "-p", "hello\n", "-n", 24, "--seed", 2)
    assert done.stdout.startswith(first)
    # /more after /save and after /load give the same, the rest of the longer passage
    ids = passages(model, "-p", "hello\n", "-n", 24, "--seed", 2)[0]["ids"]
    rest = bytes(ids[12:]).decode(errors="replace")
    assert done.stdout.count(rest + "\n") == 2 or "\ufffd" in whole
    assert "tokens read" in done.stdout and "12 numbers" not in done.stdout
    for message in ("temperature is -1", "no command /nonsense", "there is no text yet"):
        assert message in done.stderr
    # the end of input ends it too
    assert mdn("generate", model, "-i", "-n", 2, text="a\n").returncode == 0


def test_ctrl_c_ends_the_passage_only(model):
    process = subprocess.Popen(
        [MDN, "generate", model, "-i", "-n", "100000000"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.read(5)  # the passage has begun
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    rest, _ = process.communicate(b"/show\n/quit\n", timeout=120)
    assert b"tokens read" in rest
    assert process.returncode == 0


def test_ctrl_c_keeps_the_state(model, tmp_path):
    state = tmp_path / "state"
    process = subprocess.Popen(
        [MDN, "generate", model, "-p", "hi", "-n", "100000000", "--save-state", state],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.read(5)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 0
    generate(model, "--load-state", state, "-n", 3)
