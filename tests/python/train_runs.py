"""Small training runs of the program under test, shared by the tests of `mdn train`."""

import json
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MDN = Path(os.environ.get("MDN_BUILD", str(ROOT / "build"))) / "mdn"
GOLDEN = ROOT / "tests" / "data" / "goldens" / "mdn"

# Two layers of width 32: a step takes a few milliseconds.
TINY_MODEL = {
    "model_type": "momentum_deltanet",
    "vocab_size": 256,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 2,
    "head_dim": 16,
    "expand_v": 1,
    "intermediate_size": 48,
}


def mdn(*arguments, **options):
    return subprocess.run(
        [MDN, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def make_data(folder, text, *flags):
    (folder / "text.txt").write_text(text)
    done = mdn("data", folder / "text.txt", "--out", folder / "data", *flags)
    assert done.returncode == 0, done.stderr
    return folder / "data"


def write_config(folder, **keys):
    config = {
        "model": TINY_MODEL,
        "data": str(folder / "data"),
        "out": str(folder / "out"),
        "rows": 2,
        "length": 16,
        "order": "windows",
        "learning_rate": 0.003,
        "warmup_fraction": 0.1,
        "eval_every": 0,
        "threads": 1,
        **keys,
    }
    path = folder / "train.json"
    path.write_text(json.dumps(config, indent=2))
    return path


def metrics(out, kind="train"):
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def checkpoints(out):
    return sorted(path for path in out.glob("step-*") if path.is_dir()) if out.exists() else []


def content(checkpoint):
    """Every file of a checkpoint but trainer.json, which holds times."""
    return {
        path.name: path.read_bytes()
        for path in checkpoint.iterdir()
        if path.name != "trainer.json"
    }


def check_whole(checkpoint):
    """Reads a checkpoint as another program would: nothing in it may be cut short."""
    names = {path.name for path in checkpoint.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "optimizer.safetensors",
        "trainer.json",
    }, checkpoint
    for name in ("config.json", "tokenizer.json", "trainer.json"):
        json.loads((checkpoint / name).read_text())
    for name in ("model.safetensors", "optimizer.safetensors"):
        data = (checkpoint / name).read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        end = max(t["data_offsets"][1] for key, t in header.items() if key != "__metadata__")
        assert len(data) == 8 + length + end, checkpoint / name
    assert json.loads((checkpoint / "trainer.json").read_text())["step"] == int(checkpoint.name[5:])
