"""What machine code the library carries: of every GPU that is supported, made ahead of time."""

import os
import re
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

BUILD = Path(os.environ["MDN_LIBRARY"])


def cache_value(name):
    cache = (BUILD / "CMakeCache.txt").read_text()
    return re.search(rf"^{name}:\w+=(.*)$", cache, re.MULTILINE).group(1)


@pytest.fixture
def listed():
    """Compute capabilities by compiled file."""
    if not (BUILD / "CMakeCache.txt").exists() or cache_value("MDN_CUDA") != "ON":
        pytest.skip("a build without CUDA")
    triton = pytest.importorskip("triton", reason="cuobjdump comes with triton")
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    text = subprocess.run(
        [cuobjdump, "--list-elf", BUILD / "libmdn_ops.so"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = defaultdict(set)
    for name, capability in re.findall(r"(\w+)\.sm_(\d+)a?\.cubin", text):
        found[name].add(capability)
    return found


def test_portable_kernels_for_every_architecture(listed):
    wanted = set(cache_value("MDN_CUDA_ARCHITECTURES").split(";"))
    assert "portable_walk" in listed and "decode" in listed
    for name, capabilities in listed.items():
        of_hopper = name.startswith("hopper_") or name == "segment_states"
        assert capabilities == ({"90"} if of_hopper else wanted), name


def test_hopper_kernels_of_both_types(listed):
    for part in ("forward", "backward"):
        for dtype in ("bf16", "fp16"):
            assert f"hopper_{part}_{dtype}" in listed
