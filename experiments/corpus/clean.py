"""From texts to a corpus: tidy, without boilerplate, English, no text twice.

Near duplicates are found by MinHash over shingles of five words, 64 values a document in 16 bands of 4: two
documents that share a band are compared by their 64 values, whose share of equal ones estimates the Jaccard
similarity of their shingles (standard error at most 1/16).
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

import numpy as np

SHORTEST = 500  # characters of a document
REPEATED = 4  # documents of a package that may hold the same paragraph of LONG_LINE characters or more
LONG_LINE = 40
SHORT_SHARE = 0.3  # a shorter paragraph in more of a package's documents than this is a menu
COPIED = 150  # characters of a paragraph that may stand in the corpus once
STOP_SHARE = 0.15  # of words that the commonest ones must make up: less is a table, code or another language
SAMPLE = 20_000
STOP_WORDS = frozenset("""the of and to a in is it for that be on with as by this are or not an if can from
at you will has have which when was but its all one may must used use i he his they we""".split())
WORD = re.compile(r"\w+")

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\u00b6\uf0c1]")  # the last two mark links
SPACES = re.compile("[\u00a0\u2002\u2003\u2007\u2009\u200a\u202f\u3000]")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def tidy(text: str) -> str:
    """One form of each character, no control characters, no white space at ends, one blank line at most."""
    if not text.isascii():
        text = SPACES.sub(" ", INVISIBLE.sub("", unicodedata.normalize("NFC", text)))
    text = CONTROL.sub("", text.replace("\t", "    "))
    text = re.sub(r" +\n", "\n", text + "\n")
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n ")


def paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def without_boilerplate(documents: list[str]) -> list[str]:
    """Leaves out of the documents of one package the paragraphs that many of them share."""
    counts: Counter[str] = Counter()
    for text in documents:
        counts.update(set(paragraphs(text)))

    def repeated(paragraph: str) -> bool:
        if len(paragraph) >= LONG_LINE:
            return counts[paragraph] > REPEATED
        return counts[paragraph] > max(10, SHORT_SHARE * len(documents))

    return ["\n\n".join(p for p in paragraphs(text) if not repeated(p)) for text in documents]


def is_english_prose(text: str) -> bool:
    """Judged by the first SAMPLE characters."""
    text = text[:SAMPLE]
    words = WORD.findall(text.lower())
    return (
        len(words) > 0
        and sum(map(len, words)) + text.count(" ") >= 0.7 * len(text)
        and sum(word in STOP_WORDS for word in words) >= STOP_SHARE * len(words)
    )


class ParagraphFilter:
    """Long paragraphs that an earlier document had are left out."""

    def __init__(self):
        self.seen: set[bytes] = set()

    def __call__(self, text: str) -> str:
        kept = []
        for paragraph in paragraphs(text):
            if len(paragraph) >= COPIED:
                key = hashlib.blake2b(" ".join(paragraph.split()).encode(), digest_size=12).digest()
                if key in self.seen:
                    continue
                self.seen.add(key)
            kept.append(paragraph)
        return "\n\n".join(kept)


class WordHashes(dict):
    """64 bits a word, computed once."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = value
        return value


class NearDuplicates:
    """Tells which documents resemble an earlier one."""

    VALUES, BANDS, SHINGLE = 64, 16, 5
    SIMILAR = 0.6

    def __init__(self):
        drawn = np.frombuffer(hashlib.shake_128(b"near duplicates").digest(16 * self.VALUES), dtype="<u8")
        self.factors = drawn[: self.VALUES] | np.uint64(1)
        self.offsets = drawn[self.VALUES :]
        self.hashes = WordHashes()
        self.signatures: list[np.ndarray] = []
        self.buckets: dict[bytes, list[int]] = {}

    def signature(self, text: str) -> np.ndarray:
        words = WORD.findall(text.lower())
        hashes = np.array([self.hashes[word] for word in words], dtype=np.uint64)
        count = max(1, len(words) - self.SHINGLE + 1)
        shingles = np.zeros(count, dtype=np.uint64)
        for j in range(min(self.SHINGLE, len(words))):
            shingles = (shingles ^ hashes[j : j + count]) * np.uint64(0x9E3779B97F4A7C15)
            shingles ^= shingles >> np.uint64(29)
        return np.array([(shingles * a + b).min() for a, b in zip(self.factors, self.offsets)])

    def is_new(self, text: str) -> bool:
        """False when an earlier new document is similar; otherwise the text is remembered."""
        signature = self.signature(text)
        keys = [bytes([i]) + band.tobytes() for i, band in enumerate(np.split(signature, self.BANDS))]
        candidates = {place for key in keys for place in self.buckets.get(key, ())}
        for place in candidates:
            if np.mean(self.signatures[place] == signature) >= self.SIMILAR:
                return False
        for key in keys:
            self.buckets.setdefault(key, []).append(len(self.signatures))
        self.signatures.append(signature)
        return True


def cleaned(packages: Iterable[tuple[str, list[tuple[str, str]]]]):
    """For each package with its (path, text) documents: the documents kept and how many fell to what."""
    once, duplicates = ParagraphFilter(), NearDuplicates()
    for package, documents in packages:
        dropped: Counter[str] = Counter()
        kept = []
        texts = without_boilerplate([tidy(text) for _, text in documents])
        for (path, _), text in zip(documents, texts):
            if len(text) < SHORTEST:
                dropped["short"] += 1
                continue
            if not is_english_prose(text):
                dropped["no prose"] += 1
                continue
            text = once(text)
            if len(text) < SHORTEST:
                dropped["copies"] += 1
            elif not is_english_prose(text):
                dropped["no prose"] += 1
            elif not duplicates.is_new(text):
                dropped["similar"] += 1
            else:
                kept.append((path, text))
        yield package, kept, dropped
