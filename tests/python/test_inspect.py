"""mdn inspect from the command line."""

import json

from train_runs import make_data, mdn, write_config


def test_a_runs_folder_stands_for_its_newest_checkpoint(tmp_path):
    make_data(tmp_path, "the cat sat on the mat and the dog ran after it\n" * 20)
    done = mdn("train", write_config(tmp_path, max_steps=2))
    assert done.returncode == 0, done.stderr
    flags = ("--text", tmp_path / "text.txt", "--tokens", 64, "--json")
    of_run = mdn("inspect", tmp_path / "out", *flags)
    assert of_run.returncode == 0, of_run.stderr
    of_checkpoint = mdn("inspect", tmp_path / "out" / "step-00000002", *flags)
    assert json.loads(of_run.stdout) == json.loads(of_checkpoint.stdout)
