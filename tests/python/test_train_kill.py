"""Kills training with SIGKILL at random moments and resumes: no checkpoint is lost, and the end has
the bits of a run that was never interrupted."""

import random
import subprocess
import time

from train_runs import MDN, check_whole, checkpoints, content, make_data, mdn, write_config

KILLS = 20
STEPS = 200
TEXT = "What's past is prologue; what to come, in yours and my discharge.\n" * 60


def newest(out):
    found = checkpoints(out)
    return int(found[-1].name[5:]) if found else -1


def test_twenty_kills_lose_no_checkpoint_and_no_bit(tmp_path):
    make_data(tmp_path, TEXT)
    config = write_config(tmp_path, max_steps=STEPS, checkpoint_every=1, keep=2, log_every=1)
    straight = tmp_path / "straight"
    done = mdn("train", config, "--out", straight)
    assert done.returncode == 0, done.stderr
    want = content(checkpoints(straight)[-1])

    chance = random.Random(20)
    out = tmp_path / "out"
    kills = finished = 0
    moments = set()  # what the kills interrupted
    while kills < KILLS:
        before = newest(out)
        # A checkpoint a step: most of a run's time is spent writing one. Every third kill falls
        # into the start (libraries, data, resuming), the others into training, after a few steps and
        # a part of one: counted in steps, so that a slow machine does not see longer runs.
        process = subprocess.Popen(
            [MDN, "train", str(config), "--resume"], stdout=subprocess.PIPE, text=True
        )
        if kills % 3 == 0:
            time.sleep(chance.uniform(0, 0.25))
        else:
            steps = chance.randrange(1, 6)
            for line in process.stdout:
                steps -= line.lstrip().startswith("step")
                if steps == 0:
                    break
            time.sleep(chance.uniform(0, 0.02))
        process.kill()
        finished += process.wait() == 0
        assert finished == 0, "the run ended before it was killed often enough"
        kills += 1
        if list(out.glob(".step-*.tmp.*")):
            moments.add("writing a checkpoint")
        if list(out.glob(".step-*.removed.*")):
            moments.add("removing one")
        after = newest(out)
        assert after >= before, "a checkpoint was lost"
        for path in checkpoints(out):
            check_whole(path)
    assert "writing a checkpoint" in moments

    done = mdn("train", config, "--resume")
    assert done.returncode == 0, done.stderr
    assert content(checkpoints(out)[-1]) == want
    assert not list(out.glob(".step-*")), "leftovers of killed runs stay"
    steps = [line.split('"step":')[1].split(",")[0] for line in open(out / "metrics.jsonl")]
    assert steps == [
        line.split('"step":')[1].split(",")[0] for line in open(straight / "metrics.jsonl")
    ]
