"""Plain text out of the formats that the packages carry: each reader takes a file and gives documents."""

import gzip
import re

from lxml import etree
from lxml import html as lxml_html

# HTML and XML ---------------------------------------------------------------------------------------

DROPPED_TAGS = {"script", "style", "head", "nav", "footer", "form", "button", "select", "svg", "noscript",
                "iframe", "template", "audio", "video", "object", "comment", "info", "desc"}
# Classes, ids and roles of what surrounds a text: menus, tables of contents, headers, line numbers.
DROPPED_NAMES = set("""sphinxsidebar sphinxsidebarwrapper related navigation navheader navfooter navfoot
navhead nav-panel nav nav-bar navbar navbutton headerlink toc contents shortcontents toctree-wrapper
breadcrumbs breadcrumb wy-nav-side wy-breadcrumbs sidebar searchbox linenos lineno viewcode-link
copyright footer menu rst-versions rst-footer-buttons prev next up tocset tocsub navsettop navsetbottom
versionbox nav-wrapper nav-top sub-nav topnav bottomnav bottomNav topNav subNav skipnav skip-nav
legalcopy printfooter mw-jump-to editsection t-navbar noprint chapter-nav page-toc left-sidebar
shortdescription-toc qc_toc titlepage-toc sidebar-scrollbox mobile-nav-chapters sidetoc
sidebarbox page-links nav-wide-wrapper""".split())
BLOCK_TAGS = set("""p div section article main h1 h2 h3 h4 h5 h6 ul ol dl table blockquote pre body
figure address fieldset hr center title page note screen steps""".split())
LINE_TAGS = {"li", "dt", "dd", "tr", "br", "caption", "item"}
VERBATIM_TAGS = {"pre", "screen", "code-block"}
# Where a page says which part of it is the text.
MAIN_PATHS = ["//*[@role='main']", "//main", "//article", "//*[@id='mw-content-text']",
              "//div[contains(concat(' ', @class, ' '), ' body ')]"]


class TextWriter:
    """Paragraphs from pieces of text: white space is one space, but for verbatim ones."""

    def __init__(self):
        self.parts: list[str] = []
        self.pieces: list[str] = []
        self.separator = ""

    def add(self, text: str | None):
        if text:
            self.pieces.append(text)

    def end(self, separator: str):
        text = " ".join("".join(self.pieces).split())
        self.pieces.clear()
        if text and text != "-":
            self._append(text)
        if len(separator) > len(self.separator):
            self.separator = separator

    def verbatim(self, text: str):
        lines = [line.rstrip() for line in text.expandtabs().strip("\n").split("\n")]
        text = "\n".join(lines).rstrip()
        if text.strip():
            self._append(text)

    def _append(self, text: str):
        if self.parts:
            self.parts.append(self.separator or "\n")
        self.parts.append(text)
        self.separator = ""

    def text(self) -> str:
        self.end("")
        return "".join(self.parts)


def is_dropped(element) -> bool:
    if element.tag in DROPPED_TAGS:
        return True
    for key in ("class", "id", "role"):
        value = element.get(key)
        if value and not DROPPED_NAMES.isdisjoint(value.split()):
            return True
    return False


def write_element(element, writer: TextWriter):
    for child in element:
        tag = child.tag
        if isinstance(tag, str) and not is_dropped(child):
            tag = tag.rpartition("}")[2]
            if tag in VERBATIM_TAGS:
                writer.end("\n\n")
                writer.verbatim("".join(child.itertext()))
                writer.end("\n\n")
            elif tag in BLOCK_TAGS:
                writer.end("\n\n")
                writer.add(child.text)
                write_element(child, writer)
                writer.end("\n\n")
            elif tag in LINE_TAGS:
                writer.end("\n")
                if tag in ("li", "item"):
                    writer.add("- ")
                writer.add(child.text)
                write_element(child, writer)
                writer.end("\n")
            elif tag in ("td", "th"):
                writer.add(child.text)
                write_element(child, writer)
                writer.add("  ")
            elif tag != "img":
                writer.add(child.text)
                write_element(child, writer)
        writer.add(child.tail)


def element_text(root) -> str:
    writer = TextWriter()
    writer.add(root.text)
    write_element(root, writer)
    return writer.text()


def decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_html(data: bytes) -> list[str]:
    text = decode(data)
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text)  # its encoding is settled
    if not text.strip():
        return []
    try:
        root = lxml_html.document_fromstring(text)
    except etree.ParserError:
        return []
    for path in MAIN_PATHS:
        found = root.xpath(path)
        if found:
            return [element_text(found[0])]
    body = root.find("body")
    return [element_text(body if body is not None else root)]


def read_mallard(data: bytes) -> list[str]:
    parser = etree.XMLParser(recover=True, remove_comments=True, resolve_entities=False, no_network=True)
    root = etree.fromstring(data, parser)
    if root is None:
        return []
    for element in root.iter():  # namespaces say nothing here
        if isinstance(element.tag, str):
            element.tag = element.tag.rpartition("}")[2]
    return [element_text(root)]


# Text, roff, pod ------------------------------------------------------------------------------------


def read_text(data: bytes) -> list[str]:
    lines = [line.expandtabs().rstrip() for line in decode(data).splitlines()]
    return ["\n".join(lines)]


ROFF_GLYPHS = {"aq": "'", "dq": '"', "lq": '"', "rq": '"', "oq": "'", "cq": "'", "em": "-", "en": "-",
               "bu": "*", "co": "(c)", "rs": "\\", "ha": "^", "ti": "~", "mu": "x", "<=": "<=", ">=": ">=",
               "!=": "!=", "==": "==", "->": "->", "<-": "<-", "+-": "+-", "de": " degrees", "Pd": "L",
               "mc": "u", "pi": "pi", "if": "infinity", "ga": "`", "lB": "[", "rB": "]", "sl": "/"}
ROFF_FONT = re.compile(r"\\f(?:\[[^\]]*\]|\(..|.)")
ROFF_SIZE = re.compile(r"\\s[+-]?\d+")
ROFF_GLYPH = re.compile(r"\\\((..)|\\\[([^\]]+)\]|\\\*\((..)|\\\*(.)")


def roff_text(text: str) -> str:
    text = re.sub(r'\\".*$', "", text)
    text = ROFF_SIZE.sub("", ROFF_FONT.sub("", text))
    text = ROFF_GLYPH.sub(lambda m: ROFF_GLYPHS.get(m[1] or m[2] or m[3] or m[4], ""), text)
    text = re.sub(r"\\[&|^/,:%]|\\c$", "", text)
    text = text.replace(r"\-", "-").replace(r"\ ", " ").replace(r"\~", " ").replace(r"\0", " ")
    return text.replace(r"\e", "\\").replace(r"\(", "(").replace("\\'", "'").replace("\\`", "`")


def roff_arguments(text: str) -> list[str]:
    return [roff_text(a or b) for a, b in re.findall(r'"([^"]*)"|((?:\\ |\S)+)', text)]


def read_man(data: bytes) -> list[str]:
    """A manual page in the man macros. Tables are left out, and whole pages that only include another."""
    writer = TextWriter()
    verbatim: list[str] | None = None
    skip_until = ""
    tag_line = False
    for line in decode(data).splitlines():
        if skip_until:
            skip_until = "" if line.startswith(skip_until) else skip_until
            continue
        if not line.startswith((".", "'")):
            if verbatim is not None:
                verbatim.append(roff_text(line))
            elif not line.strip():
                writer.end("\n\n")
            else:
                writer.add(roff_text(line) + " ")
                if tag_line:
                    writer.end("\n")
                    tag_line = False
            continue
        match = re.match(r"[.']\s*([A-Za-z]+|\\\")\s*(.*)$", line)
        name, rest = (match[1], match[2]) if match else ("", "")
        if name in ("SH", "SS"):
            writer.end("\n\n")
            writer.add(" ".join(roff_arguments(rest)))
            writer.end("\n")
        elif name in ("PP", "P", "LP", "sp", "TP", "IP", "HP", "TQ"):
            if verbatim is not None:
                verbatim.append("")
                continue
            writer.end("\n" if name == "TQ" else "\n\n")
            if name == "IP" and rest:
                writer.add("".join(roff_arguments(rest)[:1]) + " ")
            tag_line = name in ("TP", "TQ")
        elif name in ("B", "I", "SM", "BR", "RB", "BI", "IB", "IR", "RI", "SB", "UR", "MT", "UE", "ME"):
            arguments = roff_arguments(rest)
            piece = (" " if name in ("B", "I", "SM", "UR", "MT") else "").join(arguments)
            if verbatim is not None:
                verbatim.append(piece)
            else:
                writer.add(piece + " ")
                if tag_line:
                    writer.end("\n")
                    tag_line = False
        elif name in ("nf", "EX"):
            writer.end("\n\n")
            verbatim = []
        elif name in ("fi", "EE") and verbatim is not None:
            writer.verbatim("\n".join(verbatim))
            writer.end("\n\n")
            verbatim = None
        elif name == "br":
            writer.end("\n")
        elif name == "TS":
            skip_until = ".TE"
        elif name == "so":
            return []
    return [writer.text()]


POD_CODE = re.compile(r"([A-Z])(?:<<+\s+(.*?)\s+>>+|<([^<>]*)>)", re.S)


def pod_text(text: str) -> str:
    """Formatting codes to what they show, from the inside out."""
    def shown(match: re.Match) -> str:
        inner = match[2] if match[2] is not None else match[3]
        if match[1] == "E":
            return {"lt": "\0lt", "gt": "\0gt", "sol": "/", "verbar": "|"}.get(inner, "")
        if match[1] in "XZ":
            return ""
        return inner.partition("|")[0] if match[1] == "L" else inner

    before = None
    while before != text:
        before, text = text, POD_CODE.sub(shown, text)
    return text.replace("\0lt", "<").replace("\0gt", ">")


def read_pod(data: bytes) -> list[str]:
    writer = TextWriter()
    for paragraph in re.split(r"\n\s*\n", decode(data)):
        command, _, rest = paragraph.strip("\n").partition(" ")
        if command.split("\n")[0] in ("=begin", "=for", "=encoding", "=pod", "=cut", "=over", "=back", "=end"):
            continue
        if command.startswith(("=head", "=item")):
            writer.add(pod_text(rest.lstrip("* ") if command == "=item" else rest))
            writer.end("\n\n")
        elif paragraph.startswith((" ", "\t")):
            writer.verbatim(paragraph)
            writer.end("\n\n")
        else:
            writer.add(pod_text(paragraph))
            writer.end("\n\n")
    return [writer.text()]


# Collections of short entries: joined in their order to documents of some thousand characters ---------

ENTRY_DOCUMENT = 6000


def grouped(entries) -> list[str]:
    documents, group, size = [], [], 0
    for entry in entries:
        group.append(entry)
        size += len(entry)
        if size >= ENTRY_DOCUMENT:
            documents.append("\n\n".join(group))
            group, size = [], 0
    if group:
        documents.append("\n\n".join(group))
    return documents


def read_dictionary(data: bytes) -> list[str]:
    """A dictd database without its index: an entry begins at a line that is not indented."""
    text = decode(data).replace("\r", "")
    entries = re.split(r"\n(?=\S)", text)
    clean = (re.sub(r"[{}]", "", "\n".join(line.rstrip() for line in entry.strip().split("\n")))
             for entry in entries)
    return grouped(entry for entry in clean if len(entry) > 40 and not entry.startswith("00-"))


def read_wordnet(data: bytes) -> list[str]:
    """A line a sense: `words: gloss`, in the file's order, which is that of meanings."""
    entries = []
    for line in decode(data).splitlines():
        if line.startswith("  "):  # the licence
            continue
        fields, _, gloss = line.partition("|")
        parts = fields.split()
        words = [parts[4 + 2 * i].replace("_", " ") for i in range(int(parts[3], 16))]
        words = [re.sub(r"\((a|p|ip)\)$", "", word) for word in words]
        entries.append(f"{', '.join(words)}: {gloss.strip()}")
    return grouped(entries)


def read_fortunes(data: bytes) -> list[str]:
    entries = (entry.strip("\n").expandtabs() for entry in re.split(r"\n%\n", decode(data)))
    return grouped(entry for entry in entries if entry)


READERS = {
    "html": read_html,
    "mallard": read_mallard,
    "text": read_text,
    "man": read_man,
    "pod": read_pod,
    "dictionary": read_dictionary,
    "wordnet": read_wordnet,
    "fortunes": read_fortunes,
}


def documents_of(kind: str, path: str, data: bytes) -> list[str]:
    """The documents of one file; gzip is seen from its first bytes."""
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    return READERS[kind](data)
