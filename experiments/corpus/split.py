"""Which documents `mdn data --split document` holds out, computed here so that both sides can be told apart
before tokens exist. build.py compares its counts with the manifest that `mdn data` writes."""

import hashlib

MASK = (1 << 64) - 1
HELD_OUT = 5  # the use of the seed, as in mdn/data/prepare.cpp


def mix(x: int) -> int:
    x = (x ^ (x >> 33)) * 0xFF51AFD7ED558CCD & MASK
    x = (x ^ (x >> 33)) * 0xC4CEB9FE1A85EC53 & MASK
    return x ^ (x >> 33)


def keyed_random(key: int, counter: int) -> int:
    return mix(mix(key + 0x9E3779B97F4A7C15 * (counter + 1) & MASK) ^ key)


def is_held_out(text: str, fraction: float, seed: int) -> bool:
    key = keyed_random(keyed_random(seed, HELD_OUT), 0)
    content = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
    return (keyed_random(key, content) >> 11) * 2.0**-53 < fraction
