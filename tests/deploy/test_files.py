from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from reparam.deploy.files import require_file, require_writable, sha256, written
from reparam.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / "a.bin", tmp_path / "a.json"]
    with written(paths) as drafts:
        for draft in drafts:
            draft.write_text("whole")
        assert not any(path.exists() for path in paths)
    assert [path.read_text() for path in paths] == ["whole", "whole"]
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_of_an_unfinished_file(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.bin").write_text("old")

    def write() -> None:
        with written([tmp_path / "a.bin"], force=True) as drafts:
            drafts[0].write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert (tmp_path / "a.bin").read_text() == "old"


def test_files_are_overwritten_when_that_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(InputError, match="exists and is not overwritten"), written([path]) as drafts:
        drafts[0].write_text("new")
    assert path.read_text() == "old"
    with written([path], force=True) as drafts:
        drafts[0].write_text("new")
    assert path.read_text() == "new"


def test_a_file_that_has_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"

    def write() -> None:
        with written([path]) as drafts:
            drafts[0].write_text("ours")
            path.write_text("theirs")

    with pytest.raises(InputError, match="exists"):
        write()
    assert path.read_text() == "theirs"


def test_new_files_have_the_permissions_of_new_files(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    with written([tmp_path / "a.bin"]) as drafts:
        drafts[0].write_text("")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_a_replaced_file_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a.bin"
    path.write_text("old")
    path.chmod(mode)
    with written([path], force=True) as (draft,):
        draft.write_text("new")
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_dangling_link_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.symlink_to("gone")
    with pytest.raises(InputError, match=r"is a link to gone, which does not exist; .*--force"):
        require_writable(path)
    with written([path], force=True) as (draft,):
        draft.write_text("new")
    assert path.read_text() == "new"
    assert not path.is_symlink()


def test_the_folder_is_synced_after_the_files_are_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, list[str]]] = []

    def fsync(descriptor: int) -> None:
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        synced.append((kind, [path.name for path in tmp_path.glob("a.*")]))

    monkeypatch.setattr(os, "fsync", fsync)
    with written([tmp_path / "a.bin"]) as (draft,):
        draft.write_text("")
    assert synced == [("file", []), ("folder", ["a.bin"])]


@pytest.mark.parametrize("times", [1, 2])
def test_nothing_is_left_when_sigterm_ends_the_process(tmp_path: Path, times: int) -> None:
    code = (
        "import pathlib, time\nfrom reparam.deploy.files import written\n"
        "with written([pathlib.Path('a.bin')]) as drafts:\n"
        "    drafts[0].write_text('half'); print('ready', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert list(tmp_path.iterdir())
        for _ in range(times):
            process.terminate()
        assert process.wait(30) == -signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_sigterm_is_handled_as_before_afterwards(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with written([tmp_path / "a.bin"]) as (draft,):
        draft.write_text("")
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == before


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        require_writable(tmp_path / "none" / "a.bin")
    with pytest.raises(InputError, match="is a folder"):
        require_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="there is no folder"):
        require_writable(tmp_path / "file" / "a.bin")
    with pytest.raises(InputError, match="a device or a pipe"):
        require_writable(Path("/dev/full"), force=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="permission is denied"):
        require_writable(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "permission"), (errno.EIO, "I/O|Input")]
)
def test_system_errors_are_put_into_words(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(InputError, match=rf"a.bin cannot be written: .*({said})"), written([tmp_path / "a.bin"]):
        raise OSError(number, os.strerror(number))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["I/O error: No space left on device (os error 28)", "write: No space left on device"])
def test_errors_of_libraries_are_put_into_words(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="the disk is full"), written([tmp_path / "a.bin"]):
        raise RuntimeError(text)
    with pytest.raises(RuntimeError, match="something else"), written([tmp_path / "a.bin"]):
        raise RuntimeError("something else")
    assert not list(tmp_path.iterdir())


def test_a_full_disk(tmp_path: Path) -> None:
    """The system ends the write in the middle: no file may grow beyond 1000 bytes."""
    code = (
        "import resource, pathlib\nfrom reparam.deploy.files import written\nfrom reparam.errors import InputError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    with written([pathlib.Path('a.bin')]) as drafts: drafts[0].write_bytes(bytes(5000))\n"
        "except InputError as error: print(error)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("a.bin cannot be written: the file would be larger"), done
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "best.pth").write_text("")
    with pytest.raises(InputError, match=r"no such file; there is best\.pth"):
        require_file(tmp_path / "bets.pth")
    with pytest.raises(InputError, match="nor a folder"):
        require_file(tmp_path / "none" / "best.pth")
    with pytest.raises(InputError, match="is a folder"):
        require_file(tmp_path)


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path: Path) -> None:
    """The path leads to another file afterwards; the old one is not written to."""
    path = tmp_path / "a.bin"
    path.write_text("old text")
    with path.open() as reading:
        with written([path], force=True) as drafts:
            drafts[0].write_text("new")
            assert path.read_text() == "old text"
        assert reading.read() == "old text"
    assert path.read_text() == "new"
