"""Pack a folder of Triton's cache into a small file, and unpack it in another place.

    python benchmarks/gpu/cache_archive.py pack FOLDER FILE.tar.xz
    python benchmarks/gpu/cache_archive.py unpack FILE.tar.xz FOLDER

What the compiler's passes hand to each other stays behind. The cache's indices name files by their whole path: packed,
they name a place that unpacking fills in.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from pathlib import Path

_LEFT_OUT = {".source", ".ttir", ".ttgir", ".llir", ".ptx"}
_INDEX, _PLACE = "__grp__", b"@CACHE@"


def pack(folder: Path, file: Path) -> None:
    """Write the archive of a cache."""
    file.parent.mkdir(parents=True, exist_ok=True)
    here = str(folder.resolve()).encode()
    with tarfile.open(file, "w:xz", preset=9) as archive:
        # Alike kinds of files beside each other, under fixed dates and owners: it packs better, and equally each time.
        for path in sorted(folder.rglob("*"), key=lambda p: (p.suffix, str(p))):
            if not path.is_file() or path.suffix in _LEFT_OUT or path.name == "lock":
                continue
            content = path.read_bytes()
            if path.name.startswith(_INDEX):
                content = content.replace(here, _PLACE)
            entry = tarfile.TarInfo(str(path.relative_to(folder)))
            entry.size, entry.mode = len(content), 0o755 if path.suffix == ".so" else 0o644
            archive.addfile(entry, io.BytesIO(content))


def unpack(file: Path, folder: Path) -> None:
    """Fill a folder from an archive."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file) as archive:
        # As an attribute: the argument filter= came to Python 3.10 and 3.11 with a late patch release.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    here = str(folder.resolve()).encode()
    for index in folder.rglob(f"{_INDEX}*"):
        index.write_bytes(index.read_bytes().replace(_PLACE, here))


def main(arguments: list[str] | None = None) -> None:
    """Pack or unpack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    given = parser.parse_args(arguments)
    {"pack": pack, "unpack": unpack}[given.what](given.source, given.target)


if __name__ == "__main__":
    sys.exit(main())
