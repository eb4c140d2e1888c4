"""The corpus's readers and filters, on texts made here."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

from train_runs import MDN

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.corpus import clean, extract, packages, sources, split  # noqa: E402

PROSE = ("The keeper of the house was not at home when we came to it, and so it was that we had to wait at the "
         "gate for an hour in the rain, as one does who has come too early and has no other place to go to. ")


def test_html_gives_the_text_without_what_surrounds_it():
    page = b"""<html><head><title>T</title><style>p {}</style></head><body>
      <div class="nav sidebar">Menu</div><h1>Heading<a class="headerlink" href="#">#</a></h1>
      <p>One <b>two</b>
         three<br>four.</p><ul><li>first</li><li><p>second</p></li></ul>
      <pre>  a = 1\n    b</pre><table><tr><td>x</td><td>y</td></tr></table><script>no()</script>
      <!-- no --><p>caf&eacute;</p></body></html>"""
    assert extract.documents_of("html", "a.html", page) == [
        "Heading\n\nOne two three\nfour.\n\n- first\n\nsecond\n\n  a = 1\n    b\n\nx y\n\ncafé"]


def test_html_prefers_the_part_that_says_it_is_the_text():
    page = b"<body><p>around</p><div role='main'><p>text</p></div></body>"
    assert extract.documents_of("html", "a.html", page) == ["text"]
    assert extract.documents_of("html", "a.html", b"  ") == []


def test_man_page_and_gzip():
    page = rb""".\" comment
.TH NAME 7 x
.SH NAME
name \- does \fIthings\fP
.TP
.B \-\-flag
Its text
.BR see (1),
here.
.nf
  code \e n
.fi
.TS
l l.
table
.TE
"""
    text = extract.documents_of("man", "a.7.gz", gzip.compress(page))[0]
    assert text == "NAME\nname - does things\n\n--flag\nIts text see(1), here.\n\n  code \\ n"


def test_pod():
    page = b"=head1 NAME\n\nx - B<bold> and C<< a > b >> or L<the manual|perl> E<lt>\n\n    code\n\n=over 4\n\n=item * one\n"
    assert extract.documents_of("pod", "a.pod", page) == ["NAME\n\nx - bold and a > b or the manual <\n\n    code\n\none"]


def test_collections_are_joined_to_documents():
    wordnet = b"  licence\n00001 03 n 02 dog 0 domestic_dog 0 000 | an animal; \"it barks\"  \n"
    assert extract.documents_of("wordnet", "data.noun", wordnet) == ['dog, domestic dog: an animal; "it barks"']
    dictionary = b"00-database\n   x\nword\n   {meaning} of the word, long enough to stay in\nnext\n   short\n"
    assert extract.documents_of("dictionary", "a.dict", dictionary) == [
        "word\n   meaning of the word, long enough to stay in"]
    many = b"\n%\n".join(b"saying %d " % i * 100 for i in range(30))
    documents = extract.documents_of("fortunes", "love", many)
    assert len(documents) > 1 and sum(text.count("saying 7 ") for text in documents) == 100


def test_tidy():
    assert clean.tidy("a\u00a0b\u00ad \r\n\n\n\n\x07e\u0301\tx  ") == "a b\n\né    x"


def test_boilerplate_goes_and_text_stays():
    footer = "This page is part of the manual, which is under a licence of its own."
    documents = [f"{PROSE}{i}\n\n{footer}\n\nmenu" for i in range(20)]
    assert clean.without_boilerplate(documents) == [f"{PROSE}{i}" for i in range(20)]
    assert clean.without_boilerplate(documents[:3]) == documents[:3]


def test_english_prose_is_told_from_other_texts():
    assert clean.is_english_prose(PROSE)
    assert not clean.is_english_prose("int main(void) { return puts(argv[0]) + x[17] * 3; } " * 20)
    assert not clean.is_english_prose("Der Hund ging gestern mit seiner Katze durch den dunklen Wald. " * 20)
    assert not clean.is_english_prose("")


def words(seed, count=400):
    generator = random.Random(seed)
    return [f"w{generator.randrange(5000)}" for _ in range(count)]


def test_near_duplicates_are_found_and_others_not():
    duplicates = clean.NearDuplicates()
    text = words(1)
    assert duplicates.is_new(" ".join(text))
    changed = text.copy()
    changed[200] = "other"
    assert not duplicates.is_new(" ".join(changed))
    half = text[:200] + words(2, 200)  # a third of all shingles are shared
    assert duplicates.is_new(" ".join(half))
    assert all(duplicates.is_new(" ".join(words(seed))) for seed in range(10, 30))


def test_cleaning_counts_what_it_drops():
    body = "\n\n".join(f"{PROSE} Part {i} of it says {i * i}." for i in range(5))
    code = "x = f[1] + 2; " * 60
    result = list(clean.cleaned([("first", [("a", body), ("b", "short"), ("c", code)]),
                                 ("second", [("d", body + "\n\nAnd one word more."), ("e", body)])]))
    assert [(package, [path for path, _ in kept]) for package, kept, _ in result] == [("first", ["a"]), ("second", [])]
    assert result[0][2] == {"short": 1, "no prose": 1}
    assert result[1][2] == {"copies": 2}


def test_licences():
    assert packages.licences_of("Files: *\nLicense: GPL-2+\n text\n\nFiles: x\nLicense: Expat\n\nLicense: GPL-2+\n") == [
        "GPL-2+", "Expat"]
    assert packages.licences_of("It is under the GNU Free\nDocumentation License.") == ["GFDL"]


def test_sources_are_unique_and_their_patterns_work():
    names = [source.package for source in sources.SOURCES]
    assert len(set(names)) == len(names)
    assert {source.kind for source in sources.SOURCES} <= set(extract.READERS)
    by_name = {source.package: source for source in sources.SOURCES}
    assert by_name["apache2-doc"].takes("/usr/share/doc/apache2-doc/manual/en/howto/auth.html")
    assert not by_name["apache2-doc"].takes("/usr/share/doc/apache2-doc/manual/fr/howto/auth.html")
    assert not by_name["git-doc"].takes("/usr/share/doc/git/html/genindex.html")


def test_both_sides_hold_out_the_same_documents(tmp_path):
    """mdn data and split.py, document by document through their counts at several fractions."""
    texts = [f"document {i} of the test" for i in range(400)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for fraction, seed in ((0.02, 0), (0.3, 5)):
        out = tmp_path / f"data{seed}"
        subprocess.run([MDN, "data", tmp_path / "texts.jsonl", "--out", out, "--split", "document", "--val-fraction",
                        str(fraction), "--seed", str(seed)], check=True, capture_output=True)
        val = json.loads((out / "manifest.json").read_text())["splits"]["val"]
        ours = [text for text in texts if split.is_held_out(text, fraction, seed)]
        assert ours
        assert val["documents"] == len(ours)
        assert val["text_bytes"] == sum(map(len, ours))
