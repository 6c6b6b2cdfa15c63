"""The download of recordings, against a server on this machine that the tests start."""

from __future__ import annotations

import io
import threading
import time
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from speech_folders import write_folder

from ucmkd_fast.data import fsdd_download
from ucmkd_fast.data.fsdd import content_digest, recording_files
from ucmkd_fast.data.fsdd_download import download_fsdd


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path):
    """A folder and the address at which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def pack(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.fixture
def archive(site, tmp_path):
    """A served archive like GitHub's, the arguments that fit it, and its members."""
    folder, address = site
    files = recording_files(write_folder(tmp_path / "original"))
    members = {f"data-1234/recordings/{path.name}": path.read_bytes() for path in files}
    members["data-1234/README.md"] = b"about"
    members["data-1234/acquire/prompt.py"] = b"print()"
    pack(folder / "data.zip", members)
    fitting = {"url": f"{address}/data.zip", "count": len(files), "digest": content_digest(files)}
    return folder / "data.zip", fitting, members


def test_the_right_archive_becomes_a_folder_of_its_recordings(archive, tmp_path):
    _, fitting, members = archive
    cache = tmp_path / "cache"
    folder = download_fsdd(cache, **fitting)
    got = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert got == {name.split("/")[-1]: c for name, c in members.items() if name.endswith(".wav")}
    assert list(cache.iterdir()) == [folder]


def test_a_second_time_it_is_not_downloaded(archive, tmp_path):
    path, fitting, _ = archive
    folder = download_fsdd(tmp_path / "cache", **fitting)
    path.unlink()
    assert download_fsdd(tmp_path / "cache", **fitting) == folder


def wrong_archives(members: dict[str, bytes]) -> dict[str, bytes]:
    """Archives that must be refused, packed."""
    first, *rest = [name for name in members if name.endswith(".wav")]
    changed = {**members, first: members[first][:-2] + b"\1\2"}
    fewer = {name: members[name] for name in rest}
    more = {**members, "data-1234/recordings/3_zoe_0.wav": members[first]}
    renamed = {**fewer, first.replace("_ann_", "_eve_"): members[first]}
    outside = {**fewer, "../../../" + first.split("/")[-1]: members[first] + b"\0\0"}
    out = {}
    for name, content in {
        "changed": changed,
        "fewer": fewer,
        "more": more,
        "renamed": renamed,
        "outside": outside,
        "none": {"README": b""},
    }.items():
        buffer = io.BytesIO()
        pack(buffer, content)
        out[name] = buffer.getvalue()
    whole = io.BytesIO()
    pack(whole, members)
    out["cut"] = whole.getvalue()[:-40]
    flipped = bytearray(whole.getvalue())
    flipped[200] ^= 255
    out["flipped"] = bytes(flipped)
    out["a web page"] = b"<html>please log in</html>"
    return out


CASES = ["changed", "fewer", "more", "renamed", "outside", "none", "cut", "flipped", "a web page"]


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_archive_is_refused_and_leaves_nothing(archive, tmp_path, name):
    path, fitting, members = archive
    path.write_bytes(wrong_archives(members)[name])
    cache = tmp_path / "deep" / "cache"
    cache.mkdir(parents=True)
    before = set(tmp_path.parent.rglob("*"))
    with pytest.raises(ValueError, match=r"data\.zip"):
        download_fsdd(cache, **fitting)
    assert set(tmp_path.parent.rglob("*")) == before


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(archive, tmp_path):
    path, fitting, members = archive
    pack(path, {**members, "data-1234/recordings/0_ann_0.wav": bytes(30 * 2**20)})
    with pytest.raises(ValueError, match=r"0_ann_0\.wav is larger than 1048576 bytes"):
        download_fsdd(tmp_path / "cache", **fitting)


def test_the_wrong_digest_or_count_is_refused_with_both_values(archive, tmp_path):
    _, fitting, _ = archive
    with pytest.raises(ValueError, match=f"{fitting['digest']}, expected 20 with digest 1234"):
        download_fsdd(tmp_path / "cache", **{**fitting, "digest": "1234"})
    with pytest.raises(ValueError, match="20 with digest .*expected 21"):
        download_fsdd(tmp_path / "cache", **{**fitting, "count": 21})
    assert not list((tmp_path / "cache").iterdir())


def test_names_that_lead_outside_are_written_inside(archive, tmp_path):
    path, fitting, members = archive
    pack(
        path,
        {f"../../../../{name}" if i % 2 else f"/{name}": c for i, (name, c) in enumerate(members.items())},
    )
    folder = download_fsdd(tmp_path / "cache", **fitting)
    assert len(list(folder.iterdir())) == 20


def test_no_answer_is_a_connection_error_and_soon(site, tmp_path):
    _, address = site
    with pytest.raises(ConnectionError, match=r"missing\.zip could not be downloaded: .*404"):
        download_fsdd(tmp_path, url=f"{address}/missing.zip")
    with pytest.raises(ConnectionError, match="could not be downloaded"):
        download_fsdd(tmp_path, url="http://127.0.0.1:9/data.zip")  # nobody listens

    deaf = ThreadingHTTPServer(("127.0.0.1", 0), Quiet)  # connects, and never answers
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="timed out"):
        download_fsdd(tmp_path, url=f"http://127.0.0.1:{deaf.server_port}/data.zip", timeout=0.3)
    assert time.monotonic() - started < 3
    deaf.server_close()
    assert not [path for path in tmp_path.iterdir() if path.name != "site"]


def test_endless_and_slow_downloads_are_cut_off(archive, tmp_path, monkeypatch):
    _, fitting, _ = archive
    monkeypatch.setattr(fsdd_download, "_LARGEST_ARCHIVE", 1000)
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        download_fsdd(tmp_path / "cache", **fitting)
    monkeypatch.undo()
    monkeypatch.setattr(fsdd_download, "_LONGEST_DOWNLOAD", -1.0)
    with pytest.raises(ConnectionError, match="not complete"):
        download_fsdd(tmp_path / "cache", **fitting)


def test_a_download_cut_short_is_refused(archive, tmp_path):
    path, fitting, _ = archive
    content = path.read_bytes()

    class Cut(Quiet):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Cut)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        with pytest.raises((ValueError, ConnectionError), match=r"data\.zip"):
            download_fsdd(
                tmp_path / "cache", **{**fitting, "url": f"http://127.0.0.1:{server.server_port}/data.zip"}
            )
    finally:
        server.shutdown()
        server.server_close()
    assert not (tmp_path / "cache").exists() or not list((tmp_path / "cache").iterdir())
