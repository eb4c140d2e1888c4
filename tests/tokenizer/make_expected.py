"""Writes expected.json beside each tokenizer of tests/data/tokenizers: ids by `tokenizers`.

    .venv/bin/python tests/tokenizer/make_expected.py

A case is {"text", "ids"}, some with "with_special", the ids with what the template adds; texts are those of texts.py and a few hundred random
ones: words and characters of all planes mixed with white space, marks and added tokens.
"""

import json
import pathlib
import random

from tokenizers import Tokenizer
from texts import all_texts

DATA = pathlib.Path(__file__).resolve().parent.parent / "data" / "tokenizers"


def random_texts(seed, count, added):
    rng = random.Random(seed)
    words = " ".join(all_texts()[:28]).split()
    spaces = [" ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "   \n"]
    ranges = [(0x00, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x900, 0xDFF),
              (0x1100, 0x11FF), (0x2000, 0x2BFF), (0x3000, 0x9FFF), (0xAC00, 0xD7A3),
              (0x1F300, 0x1FAFF)]

    def part():
        kind = rng.randrange(5)
        if kind == 0:
            return rng.choice(words)
        if kind == 1:
            return rng.choice(spaces) * rng.randrange(1, 4)
        if kind == 2 and added:
            return rng.choice(added)
        if kind == 3:
            return rng.choice(["'s", "'RE", "123", "4", "...", "!?", "_", "<|", "|>", "\u200d"])
        low, high = rng.choice(ranges)
        return "".join(chr(rng.randint(low, high)) for _ in range(rng.randrange(1, 6)))

    return ["".join(part() for _ in range(rng.randrange(1, 12))) for _ in range(count)]


def main():
    for path in sorted(DATA.glob("*/tokenizer.json")):
        tokenizer = Tokenizer.from_file(str(path))
        added = [t["content"] for t in json.loads(path.read_text())["added_tokens"]]
        cases = []
        for text in all_texts() + random_texts(path.parent.name, 150, added):
            cases.append({"text": text,
                          "ids": tokenizer.encode(text, add_special_tokens=False).ids})
            if len(cases) % 16 == 1:
                cases[-1]["with_special"] = tokenizer.encode(text).ids
        lines = ",\n".join(json.dumps(case) for case in cases)
        (path.parent / "expected.json").write_text(f"[\n{lines}\n]\n")
        print(path.parent.name, len(cases))


if __name__ == "__main__":
    main()
