"""FSDD by name: one archive from GitHub, its recordings checked against a known digest."""

from __future__ import annotations

import http.client
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import IO

from .cache import cache_dir, folder_made_beside
from .fsdd import FILE_NAME, content_digest

COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
URL = f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip"
COUNT = 3000
# `fsdd.content_digest` of the 3,000 recordings of that commit, computed from a git
# checkout of it. The archive itself has no lasting digest: GitHub packs it anew.
DIGEST = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"

_LARGEST_ARCHIVE = 64 * 2**20  # bytes; it has about 16 MB
_LARGEST_FILE = 2**20  # bytes; the longest recording has 37 kB
_LONGEST_DOWNLOAD = 120.0  # seconds


def download_fsdd(
    cache: Path | None = None,
    *,
    url: str = URL,
    count: int = COUNT,
    digest: str = DIGEST,
    timeout: float = 5.0,
) -> Path:
    """The folder of FSDD's recordings in the cache, downloaded where it is not there yet.

    Args:
        cache: where to keep it; None: `cache_dir`.
        url: the zip archive.
        count: how many recordings it must have.
        digest: what `content_digest` of them must be.
        timeout: seconds without an answer after which there is no network.

    Raises:
        ConnectionError: the archive could not be had.
        ValueError: it is not a zip archive, or not the recordings that were expected; nothing is kept.
    """
    folder = (cache or cache_dir()) / f"fsdd-{digest[:12]}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryFile() as archive:
        _fetch(url, archive, timeout)
        with folder_made_beside(folder) as temporary:
            files = _unpack(archive, temporary, url, count)
            found = content_digest(files)
            if len(files) != count or found != digest:
                raise ValueError(
                    f"{url} holds other recordings than expected: {len(files)} with digest {found}, "
                    f"expected {count} with digest {digest}; they were not kept"
                )
    return folder


def _fetch(url: str, archive: IO[bytes], timeout: float) -> None:
    """Write what ``url`` gives into ``archive``."""
    end, size = time.monotonic() + _LONGEST_DOWNLOAD, 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            while chunk := answer.read(2**16):
                size += len(chunk)
                if size > _LARGEST_ARCHIVE:
                    raise ValueError(f"{url} gives more than {_LARGEST_ARCHIVE} bytes; it was not kept")
                if time.monotonic() > end:
                    raise TimeoutError(f"not complete after {_LONGEST_DOWNLOAD:.0f} s")
                archive.write(chunk)
    except (OSError, http.client.HTTPException) as error:
        # A plain URLError wraps what happened; an HTTPError, its child, says the status itself.
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise ConnectionError(f"{url} could not be downloaded: {reason}") from error


def _unpack(archive: IO[bytes], folder: Path, url: str, count: int) -> list[Path]:
    """The archive's recordings, written flat into ``folder`` by their checked base names."""
    files: list[Path] = []
    try:
        with zipfile.ZipFile(archive) as pack:
            for member in pack.infolist():
                name = member.filename.rpartition("/")[2]
                if FILE_NAME.fullmatch(name) and len(files) <= count:
                    with pack.open(member) as source:
                        content = source.read(_LARGEST_FILE + 1)
                    if len(content) > _LARGEST_FILE:
                        raise ValueError(f"{url}: {name} is larger than {_LARGEST_FILE} bytes")
                    path = folder / name
                    path.write_bytes(content)
                    files.append(path)
    # A damaged archive also makes zipfile raise these.
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ValueError(f"{url} is not a whole zip archive: {error}") from error
    return files
