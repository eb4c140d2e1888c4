"""Writes unicode_additions.inc: characters that PCRE2's Unicode tables do not know yet.

    .venv/bin/python mdn/tokenizer/make_unicode_additions.py > mdn/tokenizer/unicode_additions.inc

Debian 12's PCRE2 has Unicode 14 and the package `tokenizers` has Unicode 16, so a character that
came in between is a letter to one and nothing to the other. This asks `tokenizers` for the general
category (and the script, for the scripts that patterns name) of every character that Unicode 14
left unassigned. Python's unicodedata says which those are and must be of version 14.
"""

import sys
import unicodedata

from tokenizers import Regex, pre_tokenizers

CATEGORIES = ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf "
              "Co").split()
SCRIPTS = ("Han Hiragana Katakana Hangul Bopomofo Latin Cyrillic Greek Arabic Hebrew Thai "
           "Devanagari").split()

assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
EVERYTHING = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF)


def new_members(pattern):
    split = pre_tokenizers.Split(Regex(pattern + "+"), "removed", invert=True)
    found = {ord(c) for piece, _ in split.pre_tokenize_str(EVERYTHING) for c in piece}
    return sorted(c for c in found if unicodedata.category(chr(c)) == "Cn")


def ranges(members):
    result = []
    for c in members:
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


print("// Written by make_unicode_additions.py: {first, last, property}.")
for name in CATEGORIES + SCRIPTS:
    for first, last in ranges(new_members(rf"\p{{{name}}}")):
        print(f'{{0x{first:05X}, 0x{last:05X}, "{name}"}},')
sys.stdout.flush()
