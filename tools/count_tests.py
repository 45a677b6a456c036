"""Adds up what cargo test and pytest printed: `python tools/count_tests.py RUST.log PYTHON.log`."""

from __future__ import annotations

import re
import sys
from pathlib import Path


def count(log: str, word: str) -> int:
    """The sum of `N word` over a log's result lines."""
    lines = [line for line in log.splitlines() if re.match(r"test result:|=+ .* in [\d.]+s", line)]
    return sum(int(n) for line in lines for n in re.findall(rf"(\d+) {word}\b", line))


def main() -> None:
    rust, python = (Path(name).read_text(encoding="utf-8") for name in sys.argv[1:3])
    for name, log in (("Rust", rust), ("Python", python)):
        skipped = count(log, "ignored") + count(log, "skipped")
        ran = f"{count(log, 'passed')} passed, {count(log, 'failed')} failed"
        print(f"{name}: {ran}, {skipped} skipped")
    both = rust + "\n" + python
    print(f"{count(both, 'passed')} passed, {count(both, 'failed')} failed")


if __name__ == "__main__":
    main()
