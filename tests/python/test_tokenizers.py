"""Our reading of tokenizer.json against the package `tokenizers`, on random text and on options that
the committed files do not use. Needs the built program encode_stdin."""

import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import unicodedata

import pytest

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers  # noqa: E402
from tokenizers import pre_tokenizers, processors  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DATA = ROOT / "tests" / "data" / "tokenizers"
BUILD = pathlib.Path(os.environ.get("MDN_BUILD", ROOT / "build"))
ENCODE = BUILD / "encode_stdin"
NAMES = ["gpt2", "llama3", "qwen", "options"]

pytestmark = pytest.mark.skipif(not ENCODE.exists(), reason=f"{ENCODE} is not built")

sys.path.insert(0, str(ROOT / "tests" / "tokenizer"))
import make_expected  # noqa: E402
import texts as shared_texts  # noqa: E402


def ours(path, texts, *flags):
    """[(ids, decoded bytes)] for texts given as str or bytes."""
    raw = [t if isinstance(t, bytes) else t.encode() for t in texts]
    data = b"".join(struct.pack("<I", len(t)) + t for t in raw)
    done = subprocess.run([ENCODE, path, *flags], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    result = []
    for line in done.stdout.decode().splitlines():
        ids, decoded = line.split("|")
        result.append(([int(i) for i in ids.split()], bytes.fromhex(decoded)))
    assert len(result) == len(raw)
    return result


def compare(path, texts, exact=False, add_special_tokens=False):
    theirs = Tokenizer.from_file(str(path))
    flags = ["--add-special"] if add_special_tokens else []
    for text, (ids, decoded) in zip(texts, ours(path, texts, *flags)):
        expected = theirs.encode(text, add_special_tokens=add_special_tokens).ids
        assert ids == expected, repr(text)
        if exact:
            assert decoded == text.encode(), repr(text)


def added_tokens(path):
    return [t["content"] for t in json.loads(path.read_text())["added_tokens"]]


@pytest.mark.parametrize("name", NAMES)
def test_random_texts(name):
    path = DATA / name / "tokenizer.json"
    texts = make_expected.random_texts(f"differential {name}", 1500, added_tokens(path))
    compare(path, texts, exact=name in ("gpt2", "llama3"))
    compare(path, texts[:200], add_special_tokens=True)


def every_character():
    """All that any Unicode up to 16 assigns, and a sample of the rest."""
    dense = [*range(0xD800), *range(0xE000, 0x33480), *range(0xE0000, 0xE0200)]
    return [chr(c) for c in dense + [*range(0x33480, 0x110000, 101)]]


@pytest.mark.parametrize("name", ["gpt2", "llama3"])
def test_every_character(name):
    """Letters, numbers, white space and the rest are told apart as `tokenizers` does."""
    characters = every_character()
    texts = ["".join(f"a{c} {c}1" for c in characters[i:i + 500])
             for i in range(0, len(characters), 500)]
    compare(DATA / name / "tokenizer.json", texts, exact=True)


def byte_tokenizer(**parts):
    """A byte-level BPE with a few merges and what a test adds."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)}
    merges = [("a", "b"), ("ab", "c"), ("Ġ", "a"), ("Ġ", "ab"), ("1", "2"), ("Ġa", "b"), ("-", "-"),
              ("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("c", "ab"), ("a", "a"), ("aa", "aa"), ("Ã", "©")]
    for left, right in merges:
        vocab.setdefault(left + right, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, **parts.pop("model", {})))
    tokenizer.pre_tokenizer = parts.pop("pre_tokenizer",
                                        pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.decoder = decoders.ByteLevel()
    if "normalizer" in parts:
        tokenizer.normalizer = parts.pop("normalizer")
    tokenizer.add_tokens(parts.pop("added", []))
    assert not parts
    return tokenizer


def small_texts(seed, count):
    rng = random.Random(seed)
    alphabet = ["a", "b", "c", "ab", "abc", " ", "  ", "-", "--", "1", "12", "\n", "é", "e\u0301",
                "中", "😀", "'s", "'S", ".", "_", "A", "ß", "\u00a0"]
    return ["".join(rng.choice(alphabet) for _ in range(rng.randrange(0, 25)))
            for _ in range(count)]


def check(tmp_path, tokenizer, seed, extra=(), count=200):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    compare(path, small_texts(seed, count) + list(extra))


PATTERNS = [r"\s+", r"\p{L}+|\p{N}", r"[^\s\p{L}]+", r"a*", r"(?<=b)a", r"\b", r"\w+|\W", r"(?i:AB|s)",
            r"[\S]+", r"[^\P{L}a]+", r"[^\S\n]+", r"a{1,2}+b", r"b{,2}c", r"^.|.$", r"\p{Lu}|\p{Ll}|\p{M}+",
            r"[\p{Han}\p{So}]", r"\d{1,3}(?=(\d{3})*\b)", r"a++|(ab)+?", r"[\w\-]+", r"[a-c]|\x{e9}|\u4e2d",
            r"(?>a|ab)c", r"\p{^L}+", r"\p{Letter}|[\p{Punctuation}\p{Symbol}]+", "é|😀", r"[é-中]+",
            r"\h+", r"\B", r"x*", r"(?:)", r"[]a]+|\.|\A.|.\z"]


@pytest.mark.parametrize("behavior", ["isolated", "removed", "merged_with_previous",
                                      "merged_with_next", "contiguous"])
@pytest.mark.parametrize("invert", [False, True])
def test_split(tmp_path, behavior, invert):
    for i, pattern in enumerate([*map(Regex, PATTERNS), "-", "ab", ".", " ", "é"]):
        split = pre_tokenizers.Split(pattern, behavior, invert=invert)
        tail = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer = byte_tokenizer(pre_tokenizer=pre_tokenizers.Sequence([split, tail]))
        check(tmp_path, tokenizer, f"split {i}", count=60)


@pytest.mark.parametrize("individual", [False, True])
def test_digits(tmp_path, individual):
    tokenizer = byte_tokenizer(pre_tokenizer=pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=individual),
         pre_tokenizers.ByteLevel(add_prefix_space=False)]))
    check(tmp_path, tokenizer, "digits", ["1²½Ⅷ①٣一", "a12b", "\U00010d40\U0001ccf1"])


@pytest.mark.parametrize("use_regex", [False, True])
def test_prefix_space(tmp_path, use_regex):
    tokenizer = byte_tokenizer(
        pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=use_regex),
        added=["[X]"])
    check(tmp_path, tokenizer, "prefix", ["", "a", " a", "[X]a", "a[X] a[X]", "\na"])


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_normalizers(tmp_path, form):
    """Against Python's tables for every character, and against `tokenizers`, whose tables are older,
    for those of Unicode 3.2."""
    tokenizer = byte_tokenizer(normalizer=getattr(normalizers, form)())
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    assigned = [c for c in every_character() if unicodedata.category(c) != "Cn"]
    changed = [c for c in assigned
               if unicodedata.normalize(form, c) != c or unicodedata.combining(c)]
    rng = random.Random(form)

    def mixed(pool, count):
        return ["".join(rng.choice(pool) for _ in range(12)) for _ in range(count)]

    texts = ["".join(assigned[i:i + 500]) for i in range(0, len(assigned), 500)]
    texts += mixed(changed, 2000)
    for text, (_, decoded) in zip(texts, ours(path, texts)):
        assert decoded.decode() == unicodedata.normalize(form, text), repr(text)
    old = [c for c in changed if unicodedata.ucd_3_2_0.category(c) != "Cn"]
    compare(path, mixed(old, 1000) + ["".join(old[i:i + 100]) for i in range(0, len(old), 100)])


def test_added_tokens(tmp_path):
    tokenizer = byte_tokenizer(
        normalizer=normalizers.NFC(),
        added=[AddedToken("ab", single_word=True), AddedToken("-", lstrip=True, special=True),
               AddedToken("--", rstrip=True, normalized=False), AddedToken("c-", normalized=True),
               AddedToken("1", lstrip=True, rstrip=True), AddedToken(" ab"),
               AddedToken("e\u0301", normalized=True), AddedToken("12", single_word=True)])
    check(tmp_path, tokenizer, "added", ["a-ab-b", "ab", "_ab", "Ⓐab", "ab\u200d", "- - -- --", "1  1"],
          count=2000)


def test_special_tokens_as_text(tmp_path):
    tokenizer = byte_tokenizer(added=[AddedToken("ab", special=True), AddedToken("abc"),
                                      AddedToken("--", special=True)])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    tokenizer.encode_special_tokens = True
    texts = small_texts("plain", 500)
    for text, (ids, decoded) in zip(texts, ours(path, texts, "--ignore-special")):
        assert ids == tokenizer.encode(text).ids, repr(text)
        assert decoded == text.encode()


@pytest.mark.parametrize("fuse", [False, True])
def test_unknown(tmp_path, fuse):
    vocab = {"a": 0, "b": 1, "<unk>": 2, "ab": 3, "Ġ": 4}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "b")], unk_token="<unk>",
                                     fuse_unk=fuse))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    check(tmp_path, tokenizer, "unknown")


def test_ignore_merges(tmp_path):
    check(tmp_path, byte_tokenizer(model={"ignore_merges": True}), "ignore merges")


def test_templates(tmp_path):
    tokenizer = byte_tokenizer(added=["<s>", "</s>", "<x>"])
    ids = {t: tokenizer.token_to_id(t) for t in ("<s>", "</s>", "<x>")}
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(),
        processors.TemplateProcessing(single="<s> <x> $A </s> </s>", special_tokens=list(ids.items()))])
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    compare(path, small_texts("template", 50), add_special_tokens=True)


@pytest.mark.parametrize("name", NAMES)
def test_random_bytes(name):
    """`tokenizers` takes no bytes that are not UTF-8; ours gives them back exactly."""
    rng = random.Random(name)
    texts = [rng.randbytes(rng.randrange(0, 200)) for _ in range(500)]
    texts += [b"".join(rng.choice([b"a", b" ", b"\xff", b"\xe2\x82", "é".encode(), b"\xf0\x9f"])
                       for _ in range(30)) for _ in range(500)]
    results = ours(DATA / name / "tokenizer.json", texts)
    if name in ("gpt2", "llama3"):
        for text, (_, decoded) in zip(texts, results):
            assert decoded == text


def test_byte_tokenizer_is_read_by_others(tmp_path):
    """The tokenizer.json of our byte tokenizer gives the same ids in `tokenizers`."""
    path = ROOT / "tests" / "data" / "tokenizers" / "bytes" / "tokenizer.json"
    texts = shared_texts.all_texts()
    compare(path, texts, exact=True)
    for text, (ids, _) in zip(texts, ours(path, texts)):
        assert ids == list(text.encode())
