"""What a newcomer gets wrong: every wrong input ends in one sentence and exit code 1, and leaves no
half-made folder behind."""

import gzip
import json
import shutil

import pytest
from train_runs import GOLDEN, TINY_MODEL, checkpoints, make_data, mdn, write_config

TEXT = "To be, or not to be, that is the question.\n" * 100


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with text, data, a trained checkpoint and broken copies of them."""
    place = tmp_path_factory.mktemp("place")
    make_data(place, TEXT)
    done = mdn("train", write_config(place, max_steps=2))
    assert done.returncode == 0, done.stderr
    shutil.copytree(checkpoints(place / "out")[-1], place / "model")
    (place / "empty.txt").write_text("")
    (place / "folder").mkdir()
    (place / "cut.gz").write_bytes(gzip.compress(TEXT.encode())[:-9])
    (place / "number.jsonl").write_text('{"text": "a"}\n{"text": 3}\n')
    (place / "words.jsonl").write_text('{"text": "a"}\nnot json\n')
    (place / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    (place / "cut.json").write_text('{"rows": 2,')
    (place / "list.json").write_text("[1]")
    models = {
        "negative": {"num_hidden_layers": -3},
        "huge": {"num_hidden_layers": 1e300},
        "countless": {"hidden_size": 2**31, "intermediate_size": 2**31},
        "unknown": {"num_experts": 8},
        "kind": {"model_type": "x"},
        "wide": {"hidden_size": 64},
    }
    for name, keys in models.items():
        (place / f"{name}.json").write_text(json.dumps({**TINY_MODEL, **keys}))

    def broken(name, file, change):
        copy = place / name
        shutil.copytree(place / "model", copy)
        change(copy / file)

    def cut(path):
        path.write_bytes(path.read_bytes()[:-50])

    broken("no-weights", "model.safetensors", lambda path: path.unlink())
    broken("cut-weights", "model.safetensors", cut)
    broken("no-config", "config.json", lambda path: path.unlink())
    broken("other-config", "config.json", lambda path: shutil.copy(place / "wide.json", path))
    broken("no-tokenizer", "tokenizer.json", lambda path: path.unlink())
    broken("empty-tokenizer", "tokenizer.json", lambda path: path.write_text("{}"))
    shutil.copytree(place / "data", place / "flipped")
    shard = next(path for path in (place / "flipped").glob("*") if path.suffix == ".mdnt")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    shutil.copytree(place / "flipped", place / "cut-data")
    cut(place / "cut-data" / shard.name)
    return place


def complaint(place, *arguments):
    done = mdn(*arguments, cwd=place)
    assert done.returncode == 1, (done.returncode, done.stderr)
    lines = done.stderr.strip().split("\n")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("mdn: ")
    assert "unexpected failure" not in lines[0]
    return lines[0]


COMMANDS = [
    ("", "subcommand is required"),
    ("nonsense", "subcommand is required"),
    ("data", "name the files to read"),
    ("data missing.txt --out new", "missing.txt: cannot open"),
    ("data folder --out new", "folder: is a folder"),
    ("data empty.txt --out new", "empty.txt: holds no text"),
    ("data cut.gz --out new", "truncated"),
    ("data number.jsonl --out new", "number.jsonl:2"),
    ("data words.jsonl --out new", "words.jsonl:2"),
    ("data latin.jsonl --out new", "latin.jsonl:1"),
    ("data text.txt --out data", "--replace"),
    ("data text.txt --out text.txt", "no folder"),
    ("data text.txt --out /proc/x/y", "/proc/x"),
    ("data text.txt --tokenizer missing.json --out new", "missing.json"),
    ("data text.txt --tokenizer text.txt --out new", "not valid JSON"),
    ("data text.txt --val-fraction 2 --out new", "fraction"),
    ("data text.txt --val-fraction x --out new", "--val-fraction"),
    ("data text.txt --nonsense 1 --out new", "--nonsense"),
    ("train", "CONFIG is required"),
    ("train missing.json", "missing.json"),
    ("train folder", "folder"),
    ("train cut.json", "not valid JSON"),
    ("train list.json", "object is needed"),
    ("generate missing -p a", "missing"),
    ("generate folder -p a", "folder"),
    ("generate text.txt -p a", "text.txt"),
    ("generate model", "nothing to continue"),
    ("generate model --prompt-file missing", "missing"),
    ("generate model -p a -n -1", "max-tokens"),
    ("generate model -p a -n 99999999999999999999", "max-tokens"),
    ("generate model -p a --temperature nan", "temperature"),
    ("generate model -p a --top-p 2", "top-p"),
    ("generate model -p a --seed x", "--seed"),
    ("generate model -p a --seed -1", "--seed"),
    ("generate model -p a --seed 99999999999999999999", "--seed"),
    ("generate model --ids 999", "999"),
    ("generate model --ids one", "one"),
    ("generate model -p a --device gpu", "'gpu' is no device"),
    ("generate model -p a --device cuda", "cuda"),
    ("generate model -p a --dtype int4", "int4"),
    ("generate model --load-state text.txt", "text.txt"),
    ("generate model --load-state missing", "missing"),
    ("generate model -p a -n 1 --save-state /proc/x/y", "/proc/x"),
    ("generate no-weights -p a", "model.safetensors"),
    ("generate cut-weights -p a", "model.safetensors"),
    ("generate no-config -p a", "config.json"),
    ("generate other-config -p a", "64"),
    ("generate no-tokenizer -p a", "tokenizer"),
    ("generate empty-tokenizer -p a", "tokenizer.json"),
    ("verify", "DIR is required"),
    ("verify missing", "missing"),
    ("verify text.txt", "text.txt"),
    ("verify folder", "config.json"),
    ("verify model", "golden.safetensors"),
    ("verify model --tolerance -1", "--tolerance"),
    ("info", "CONFIG is required"),
    ("info missing.json", "missing.json"),
    ("info folder", "config.json"),
    ("info text.txt", "not valid JSON"),
    ("info empty.txt", "not valid JSON"),
    ("info negative.json", "num_hidden_layers"),
    ("info huge.json", "num_hidden_layers"),
    ("info countless.json", "parameters"),
    ("info unknown.json", "num_experts"),
]


@pytest.mark.parametrize("command, part", COMMANDS, ids=[c or "nothing" for c, _ in COMMANDS])
def test_commands(place, command, part):
    assert part in complaint(place, *command.split())
    assert not list(place.glob("*new*")) + list(place.glob(".*")), "something half-made stays"


KEYS = [
    ({"rows": -1}, '"rows" is -1'),
    ({"rows": "two"}, '"rows" is "two"'),
    ({"rows": 2.5}, '"rows" is 2.5'),
    ({"length": 10**18}, '"length"'),
    ({"length": 10**9}, "micro-batch"),
    ({"learning_rate": -1}, '"learning_rate"'),
    ({"max_steps": 0}, '"max_steps"'),
    ({"max_steps": None}, "max_steps"),
    ({"warmup_steps": 9, "warmup_fraction": None}, "more than"),
    ({"schedule": "linear"}, '"schedule" is "linear"; it must be one of cosine'),
    ({"dtype": "int8"}, '"dtype"'),
    ({"device": "tpu"}, "'tpu'"),
    ({"lenght": 3}, "'lenght'"),
    ({"data": "missing"}, "missing: is no folder"),
    ({"data": "text.txt"}, "text.txt: is no folder"),
    ({"data": "folder"}, "manifest.json"),
    ({"data": "flipped"}, "flipped"),
    ({"data": "cut-data"}, "cut-data"),
    ({"out": "text.txt"}, "text.txt: cannot be made"),
    ({"out": "/proc/x/y"}, "/proc/x/y: cannot be made"),
    ({"model": "missing.json"}, "missing.json"),
    ({"model": "kind.json"}, "model_type is 'x'"),
    ({"model": {**TINY_MODEL, "vocab_size": 100}}, "vocab_size is 100"),
    ({"model": {**TINY_MODEL, "hidden_size": -5}}, '"hidden_size" is -5'),
    ({"init_from": "folder"}, "model.safetensors"),
    ({"init_from": str(GOLDEN)}, "holds neither model.safetensors"),
]


@pytest.mark.parametrize("keys, part", KEYS, ids=[json.dumps(k)[:60] for k, _ in KEYS])
def test_training_keys(place, tmp_path, keys, part):
    values = {"max_steps": 2, "data": str(place / "data"), **keys}
    if values["data"] in ("missing", "text.txt", "folder", "flipped", "cut-data"):
        values["data"] = str(place / values["data"])
    config = write_config(tmp_path, **values)
    if keys.get("model") in ("missing.json", "kind.json"):
        config = shutil.copy(config, place / "train-keys.json")
    assert part in complaint(place, "train", config)
    assert not (tmp_path / "out").exists(), "a folder without a run stays"


def test_a_run_is_neither_overwritten_nor_invented(place):
    assert "--resume continues it" in complaint(place, "train", "train.json")
    (place / "fresh").mkdir()
    config = write_config(place / "fresh", max_steps=2, data=str(place / "data"))
    done = mdn("train", config, "--resume", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "holds no checkpoint yet, starting at step 0" in done.stdout


def test_bytes_that_are_no_text_are_data_and_prompts(place):
    (place / "bytes.bin").write_bytes(bytes(range(256)) * 20)
    done = mdn("data", "bytes.bin", "--out", "bytes-data", cwd=place)
    assert done.returncode == 0, done.stderr
    done = mdn("generate", "model", "-p", b"\xff\xfe(".decode("latin1"), "-n", "2", cwd=place)
    assert done.returncode == 0, done.stderr
