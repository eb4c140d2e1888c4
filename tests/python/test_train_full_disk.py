"""A disk that fills up while a model trains: older checkpoints stay whole, training goes on and says so,
the run ends with an error, and resumes to the bits of a run that had room.

A full disk is made by the limit on the size of a process's files, set from outside once the first checkpoints
are there: write() then fails as it does on a full disk, by another number. Where a small file system may be
mounted it is a full one in earnest."""

import os
import resource
import signal
import subprocess

import pytest

from train_runs import MDN, check_whole, checkpoints, content, make_data, mdn, write_config

STEPS = 120
TEXT = "Full fathom five thy father lies; of his bones are coral made.\n" * 60
NOT_EVEN_A_HEADER = 2000  # bytes, less than any checkpoint's largest file


def start(config, *flags):
    """With SIGXFSZ ignored, as Python has it: a write beyond the limit is an error and no end."""
    return subprocess.Popen(
        [MDN, "train", str(config), *map(str, flags)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, restore_signals=False,
    )


def wait_for_step(process, step):
    for line in process.stdout:
        if line.lstrip().startswith(f"step {step}/"):
            return
    raise AssertionError(f"the run ended before step {step}: {process.stderr.read()}")


def straight_run(tmp_path):
    make_data(tmp_path, TEXT)
    config = write_config(tmp_path, max_steps=STEPS, checkpoint_every=5, keep=2, log_every=1)
    done = mdn("train", config, "--out", tmp_path / "straight")
    assert done.returncode == 0, done.stderr
    return config, content(checkpoints(tmp_path / "straight")[-1])


def test_files_that_cannot_grow(tmp_path):
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    config, want = straight_run(tmp_path)
    out = tmp_path / "out"
    process = start(config)
    wait_for_step(process, 11)
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (NOT_EVEN_A_HEADER, hard))
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stdout + stderr
    assert "no checkpoint at step" in stdout and "training goes on" in stdout
    assert "File too large" in stderr and str(out) in stderr
    kept = checkpoints(out)
    assert kept and int(kept[-1].name[5:]) < STEPS
    for path in kept:
        check_whole(path)
    assert not list(out.glob(".step-*.tmp.*")), "a checkpoint that failed leaves its half behind"

    done = mdn("train", config, "--resume")
    assert done.returncode == 0, done.stderr
    assert content(checkpoints(out)[-1]) == want


def test_a_full_file_system(tmp_path):
    config, want = straight_run(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], capture_output=True, check=False
    )
    if os.geteuid() != 0 or mounted.returncode != 0:
        pytest.skip("mounting a file system is not allowed here")
    try:
        out = disk / "out"
        process = start(config, "--out", out)
        wait_for_step(process, 11)
        ballast = open(disk / "ballast", "wb", buffering=0)
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            ballast.close()
        stdout, stderr = process.communicate()
        assert process.returncode == 1, stdout + stderr
        assert "no checkpoint at step" in stdout
        assert "No space left on device" in stderr and str(out) in stderr
        for path in checkpoints(out):
            check_whole(path)
        (disk / "ballast").unlink()
        done = mdn("train", config, "--out", out, "--resume")
        assert done.returncode == 0, done.stderr
        assert content(checkpoints(out)[-1]) == want
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
