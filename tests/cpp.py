"""Whether the C++ program can be built here, and what it prints."""

import shutil
from pathlib import Path

NEEDED = "no C++ on this machine (apt-get install g++ cmake libpng-dev libjpeg-dev)"


def lacking() -> str:
    """What is not there; nothing, if all is."""
    missing = [program for program in ("cmake", "g++") if shutil.which(program) is None]
    return ", ".join(
        missing + [header for header in ("png.h", "jpeglib.h") if not any(Path("/usr/include").rglob(header))]
    )
