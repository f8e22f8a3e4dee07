"""`python -m tests.fuzz paths --seconds 300`: fuzz one parser with coverage feedback (needs `pip install atheris`).

Ends with the input when a check fails. `--corpus` is a directory that keeps inputs from one run to the next. `--list`
prints the names of the parsers.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["dockyard"], enable_loader_override=False):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Set up atheris and run it; it ends the process itself."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="?", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    if given.list or not given.target:
        sys.stdout.write("\n".join([*TARGETS, ""]))
        return
    target = TARGETS[given.target]
    corpus = given.corpus or Path(tempfile.mkdtemp(prefix=f"fuzz-{given.target}-"))
    corpus.mkdir(parents=True, exist_ok=True)
    for number, word in enumerate([*target.words, *target.begins]):
        (corpus / f"word-{number}").write_bytes(word)
    words = corpus.with_suffix(".dict")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.words if word))
    options = [
        f"-max_total_time={given.seconds}",
        f"-dict={words}",
        "-max_len=4096",
        "-timeout=5",
        "-rss_limit_mb=2048",
    ]
    atheris.Setup([sys.argv[0], *options, os.fspath(corpus)], target.feed)
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main()
