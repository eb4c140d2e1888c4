"""mdn info from the command line."""

import re

from train_runs import ROOT, mdn

GIB = 2**30


def activations(config):
    """Bytes by where: (float32, bfloat16), for 8 rows of 4096."""
    done = mdn("info", ROOT / "configs" / config, "--batch", 8, "--length", 4096)
    assert done.returncode == 0, done.stderr
    number = r"([\d.]+) GiB"
    return {
        where: [float(x) * GIB for x in values]
        for where, *values in re.findall(rf"on a (CPU|GPU) +{number} +{number}", done.stdout)
    }


def test_activations_on_a_gpu_are_those_that_a_step_keeps():
    # docs/design/training_step_cuda.md: what was measured, all weights' and optimiser's bytes (16 a
    # parameter) included. The estimate knows nothing of what one layer's backward pass needs.
    for config, parameters, measured in (
        ("mdn_400m.json", 417_537_012, 25.94),
        ("gdn_400m.json", 417_278_460, 22.65),
        ("mamba2_400m.json", 419_778_048, 27.80),
    ):
        kept = activations(config)["GPU"][1] + 16 * parameters
        assert 0.9 * measured * GIB < kept < measured * GIB, config


def test_a_cpu_keeps_more():
    sizes = activations("mdn_400m.json")
    assert sizes["CPU"][0] > sizes["CPU"][1] > sizes["GPU"][1]
