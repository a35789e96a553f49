"""Files are written whole or not at all: a path leads to the old file or to the new one, never to half of one.

A file is written under its own name into a hidden folder beside its target, where a runtime can load and check it, and
is moved into place last. Whatever ends the work before that (an error, Ctrl-C, SIGTERM, a full disk), the folder is
removed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from reparam.errors import InputError

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than the limit",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EROFS: "the disk is read-only",
    errno.ENOENT: "there is no such folder",
    errno.ENOTDIR: "a part of the path is a file and no folder",
    errno.EISDIR: "it is a folder",
    errno.ENAMETOOLONG: "the name is too long",
}
_NO_MEMORY = ("can't allocate memory", "bad_alloc", "bad allocation", "Failed to allocate memory")  # of C++ libraries
_CHUNK = 1 << 20


def require_writable(path: Path, force: bool = False) -> None:
    """Raises InputError where `path` cannot be written, so that a mistake is found before any work is done.

    force: allow a file that exists.
    """
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: there is no folder {folder}; make it, or choose another place")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name a file in it, such as {path / 'model.safetensors'}")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe; name a file")
    if path.is_symlink() and not path.exists() and not force:
        raise InputError(
            f"{path} is a link to {path.readlink()}, which does not exist; choose another name, or use --force "
            "(force=True) to replace the link"
        )
    if path.exists() and not force:
        raise InputError(f"{path} exists and is not overwritten; choose another name, or use --force (force=True)")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: permission is denied in {folder}; choose another place")


@contextmanager
def written(paths: Sequence[Path], force: bool = False) -> Iterator[list[Path]]:
    """Yields a temporary path for each of `paths`, which share a folder, and moves all files into place at the end.

    Nothing is moved where the block raises. A file that replaces another gets its permissions. Raises InputError as
    `require_writable` does, before and after the block, and where the system fails to write: the disk is full, a
    permission is missing.
    """
    for path in paths:
        require_writable(path, force)
    first = paths[0]
    with _terminated_late(), _explained(first):
        folder = Path(tempfile.mkdtemp(prefix=f".{first.name}.", dir=first.parent))
        try:
            drafts = [folder / path.name for path in paths]
            yield drafts
            for path, draft in zip(paths, drafts, strict=True):
                draft.chmod(_permissions(path, folder))
                _sync(draft)
            for path, draft in zip(paths, drafts, strict=True):
                require_writable(path, force)
                draft.replace(path)
            with suppress(OSError):  # the files are there, whether or not this file system syncs folders
                _sync(first.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def require_file(path: Path) -> Path:
    """The path itself. Raises InputError where it names no file that can be read."""
    if not path.exists():
        raise InputError(f"{path}: there is no such file{_similar_files(path)}")
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the file in it")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path} cannot be read: permission is denied")
    return path


def too_large(path: Path, error: Exception) -> InputError | None:
    """The error to raise where reading a file took too much memory or recursion; None where `error` is another one."""
    if isinstance(error, RecursionError):
        return InputError(f"{path} is nested too deeply to be read; such a file is damaged or made to do harm")
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
        return InputError(
            f"{path} needs more memory than this machine has free; use a larger one. If the file is small, it is "
            "damaged or made to do harm"
        )
    return None


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns the system's errors about writing `path` into InputError, in words."""
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number is None:
            raise
        why = _REASONS.get(number, os.strerror(number))
        raise InputError(f"{path} cannot be written: {why}; nothing was written") from error


def _errno(error: Exception) -> int | None:
    """The number of the system's error. Libraries that do not write through Python have it only in their text."""
    if isinstance(error, OSError):
        return error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    if match:
        return int(match[1])
    return next((number for number in _REASONS if os.strerror(number) in str(error)), None)


class _Terminated(BaseException):
    """SIGTERM has arrived."""


@contextmanager
def _terminated_late() -> Iterator[None]:
    """Within it SIGTERM unwinds the stack, so that drafts are removed, and then ends the process as it would have.

    Python does so for SIGINT. A program that handles SIGTERM itself keeps its handler. Only the main thread can set
    one: in another thread a draft may stay behind.
    """
    signals: list[int] = []

    def unwind(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        if len(signals) == 1:  # a second one must not stop the removal
            raise _Terminated

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if signals:
            os.kill(os.getpid(), signal.SIGTERM)


def _permissions(path: Path, folder: Path) -> int:
    """Those of the file that is replaced, or else of a new file. Asking for the umask would change it for a moment."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:  # there is none
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            new = Path(empty) / "new"
            new.touch(mode=0o666)
            return stat.S_IMODE(new.stat().st_mode)


def _sync(path: Path) -> None:
    """Write a file, or the names in a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _similar_files(path: Path) -> str:
    """The files of the same kind in that folder: the name may be mistyped."""
    folder = path.parent
    if not folder.is_dir():
        return f", nor a folder {folder}"
    names = sorted(file.name for file in folder.glob(f"*{path.suffix}") if path.suffix and file.is_file())
    return f"; there is {', '.join(names[:3])}" if names else ""
