"""What the shipped base model has read, from the releases themselves: python tools/base/texts.py

The docstrings of Python 3.11.2's standard library, and the documentation of four packages (sources.txt), rendered as plain
text by Sphinx and cut into sections, without any paragraph that shares thirteen words in a row with the embedded corpus.
The result, texts.parquet, is kept in the repository, so that the model can be made again when a source is gone.

Needs pip's index, and Debian's for Python's release (or Python-3.11.2.tgz in the folder that --sources names).
"""
import argparse, ast, hashlib, os, re, subprocess, sys, tarfile, tempfile, venv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

here = Path(__file__).resolve().parent
python_release = "Python-3.11.2.tgz"
python_sha256 = "2411c74bda5bbcfcddaf4531f66d1adc73f247f529aee981b029513aefdbf849"
sphinx = "sphinx==6.2.1"
documentation = {  # release -> (folder of its documentation, first page, suffix)
    "django-5.2.19": ("docs", "contents", ".txt"),
    "pytest-9.2.0": ("doc/en", "contents", ".rst"),
    "sphinx-9.0.4": ("doc", "index", ".rst"),
    "sqlalchemy-2.1.9": ("doc/build", "index", ".rst"),
}
left_out = re.compile(r"/(reference|changelog|changes|plugin_list|contents|genindex|license|copyright|AUTHORS|authors)\b")


# From the registries to folders of sources

def fetch_python(
    folder: Path, # where the archive is put
) -> Path: # the release's archive
    "Python's release as Debian keeps it, unchanged"
    archive = folder/python_release
    if archive.exists(): return archive
    state = Path(tempfile.mkdtemp())
    (state/"lists"/"partial").mkdir(parents=True)
    (state/"parts").mkdir()
    for path in Path("/etc/apt/sources.list.d").glob("debian*.sources"):
        (state/"parts"/path.name).write_text(path.read_text(encoding="utf-8").replace("Types: deb\n", "Types: deb-src\n"), encoding="utf-8")
    settings = state/"apt.conf"
    settings.write_text(f'Dir::Etc::SourceList "/dev/null";\nDir::Etc::SourceParts "{state}/parts/";\n'
                        f'Dir::State::Lists "{state}/lists/";\n', encoding="utf-8")
    for command in (["apt-get", "update"], ["apt-get", "source", "--download-only", "--tar-only", "python3.11=3.11.2-6"]):
        subprocess.run(command, cwd=folder, env=os.environ | {"APT_CONFIG": str(settings)}, stdout=subprocess.DEVNULL)
    found = sorted(folder.glob("python3.11_3.11.2.orig.tar.*"))
    if not found:
        raise SystemExit(f"{python_release} can't be had from Debian here. Put it into {folder} yourself and try again.")
    return found[0].rename(archive)


def fetch(
    folder: Path, # where archives are kept
) -> list[Path]: # the archive of each release, digests checked
    "Every release that is read"
    folder.mkdir(parents=True, exist_ok=True)
    python = fetch_python(folder)
    found = hashlib.sha256(python.read_bytes()).hexdigest()
    if found != python_sha256:
        raise SystemExit(f"{python} has sha256 {found}, not {python_sha256}. Delete it and try again.")
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
                    "--only-binary", "setuptools,wheel", "--require-hashes", "--requirement", here/"sources.txt",
                    "--dest", folder], check=True)
    return [python, *sorted(p for p in folder.glob("*.tar.gz") if p.name.removesuffix(".tar.gz") in documentation)]


# From sources to plain text

def render(
    release: Path, # the unpacked release
    to: Path, # where the pages are written
    bin: Path, # the environment with Sphinx in it
):
    "The documentation of a release as plain text, a file a page"
    folder, first_page, suffix = documentation[release.name]
    settings = Path(tempfile.mkdtemp())  # its own want extensions of its own; what those add is left out
    (settings/"conf.py").write_text(f"root_doc = {first_page!r}\nsource_suffix = {{{suffix!r}: 'restructuredtext'}}\n"
                                    f"today = 'Nov 29, 2026'\n", encoding="utf-8")  # a page of Django's shows the date of its rendering
    subprocess.run([bin/"sphinx-build", "-Q", "-j", "2", "-c", settings, "-b", "text", "-d", tempfile.mkdtemp(),
                    release/folder, to], check=True, env=os.environ | {"LC_ALL": "C.UTF-8"})


def docstrings(
    folder: Path, # of Python sources
) -> Iterator[tuple[str, str]]: # (qualified name, docstring)
    "Every docstring of 40 characters or more"
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef

    def walk(node, name):
        doc = ast.get_docstring(node)
        if doc and len(doc) >= 40:
            yield name, doc
        for child in node.body:
            if isinstance(child, kinds):
                yield from walk(child, f"{name}.{child.name}")

    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if {"test", "tests", "pydoc_data", "lib2to3", "idlelib"} & set(parts):
            continue
        yield from walk(ast.parse(path.read_bytes()), ".".join(p for p in parts if p != "__init__"))


def sections(
    page: str, # the text of a page
) -> Iterator[str]: # each with its heading, if it has one
    "The sections of a rendered page, without tables"
    parts = re.split(r"^(\S.*)\n([*=\-~^\"])\2{2,}\n", "\n" + page, flags=re.MULTILINE)
    titled = [("", parts[0]), *((parts[i], parts[i + 2]) for i in range(1, len(parts), 3))]
    for heading, body in titled:
        paragraphs = [p for p in body.strip("\n").split("\n\n") if p.strip() and not re.search(r"[-=]{12}|^\s*\|", p)]
        text = "\n\n".join([heading, *paragraphs] if heading else paragraphs)
        if paragraphs and len(text) >= 80:
            yield text


def read_all(
    archives: list[Path], # from `fetch`
    work: Path, # an empty folder
) -> Iterator[tuple[str, str, str]]: # (release, name of the page or object, text)
    "Every text of every release, before anything is left out"
    venv.create(work/"venv", with_pip=True)
    subprocess.run([work/"venv"/"bin"/"python", "-m", "pip", "install", "--quiet", sphinx], check=True)
    for archive in archives:
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
    for release in documentation:
        pages = work/"pages"/release
        render(work/release, pages, work/"venv"/"bin")
        for path in sorted(pages.rglob("*.txt")):
            name = path.relative_to(pages).with_suffix("").as_posix()
            if not left_out.search("/" + name):
                yield from ((release, name, text) for text in sections(path.read_text(encoding="utf-8")))
    for name, text in docstrings(work/"Python-3.11.2"/"Lib"):
        yield "Python-3.11.2", name, text


# What must not be read: the embedded corpus

def word_runs(
    text: str,
    size: int = 13, # words in a run, as GPT-3's authors took to clean what they trained on
) -> set[int]: # a hash of each run
    "The runs of words of a text, without case and punctuation"
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[i:i + size])) for i in range(len(words) - size + 1)}


def corpus_paragraphs(
    topics_files: list[Path], # `pydoc_data/topics.py` of several Pythons
) -> set[str]: # each as one line of its words
    "The paragraphs of the language reference, from which the embedded corpus is made"
    found = set()
    for path in topics_files:
        space = {}
        exec(path.read_text(encoding="utf-8"), space)
        for text in space["topics"].values():
            found |= {paragraph for paragraph in text.split("\n\n")}
    return found


def without_corpus(
    texts: list[tuple[str, str, str]], # from `read_all`
    paragraphs: set[str], # from `corpus_paragraphs`
) -> tuple[list, int]: # (the texts that are left, how many paragraphs were taken out)
    "The texts without paragraphs that stand in the corpus, or share thirteen words in a row with it"
    plain = lambda text: " ".join(re.findall(r"\w+", text.lower()))
    lines = {plain(p) for p in paragraphs if len(p) >= 40}
    runs = set().union(*map(word_runs, paragraphs))
    kept, taken, seen = [], 0, set()
    for release, name, text in texts:
        parts = text.split("\n\n")
        good = [p for p in parts if plain(p) not in lines and not word_runs(p) & runs]
        taken += len(parts) - len(good)
        text = "\n\n".join(good)
        if len(text) >= 80 and text not in seen:
            seen.add(text)
            kept.append((release, name, text))
    return kept, taken


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--sources", type=Path, default=Path.home()/".cache"/"clm_nb-base-sources", help="keeps the archives")
    args.add_argument("--topics", type=Path, nargs="*", default=[], help="pydoc_data/topics.py of more Pythons to keep clear of")
    args = args.parse_args()
    archives = fetch(args.sources)
    with tempfile.TemporaryDirectory() as work:
        texts = list(read_all(archives, Path(work)))
        import pydoc_data.topics
        topics = [Path(work)/"Python-3.11.2"/"Lib"/"pydoc_data"/"topics.py", Path(pydoc_data.topics.__file__), *args.topics]
        kept, taken = without_corpus(texts, corpus_paragraphs(topics))
    releases, names, contents = zip(*kept)
    table = pa.table({"release": pa.array(releases).dictionary_encode(), "name": names, "text": contents})
    pq.write_table(table, here/"texts.parquet", compression="zstd", compression_level=22)
    digest = hashlib.sha256((here/"texts.parquet").read_bytes()).hexdigest()
    print(f"{len(kept):,} texts, {sum(map(len, contents)):,} characters; {taken:,} paragraphs left out; sha256 {digest}")


if __name__ == "__main__": main()
