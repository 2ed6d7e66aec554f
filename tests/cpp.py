"""Whether the C++ program can be built here, and what the runners of exported models print."""

import shutil
from pathlib import Path

NEEDED = "no C++ on this machine (apt-get install g++ cmake libpng-dev libjpeg-dev)"


def lacking() -> str:
    """What is not there; nothing, if all is."""
    missing = [program for program in ("cmake", "g++") if shutil.which(program) is None]
    missing += [header for header in ("png.h", "jpeglib.h") if not any(Path("/usr/include").rglob(header))]
    return ", ".join(missing)


def values(text: str) -> dict[str, dict[str, float]]:
    """What is printed: the values of each sample by their names."""
    rows = [line.split("\t") for line in text.splitlines()]
    return {row[0]: dict(zip(row[1::2], map(float, row[2::2]), strict=True)) for row in rows}
