"""Files and folders that appear whole or not at all, on a full or read-only disk too."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

_REMEDIES = {
    errno.ENOSPC: "the disk is full: free some space or choose another place",
    errno.EDQUOT: "the disk's quota is used up: free some space or choose another place",
    errno.EROFS: "the disk is read-only: choose another place",
}
_ELSEWHERE = "choose another place"
_NO_RESULTS = (  # a file in a folder -> what the folder is
    ("dataset_statistics.json", "a checkpoint or demonstrations"),
    ("metadata.yaml", "a recording"),
    ("meta/info.json", "a recording"),
)
_WRITING = {
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.ENOENT: "its folder was removed meanwhile",
    errno.ENOTDIR: "its folder was replaced by a file",
    errno.EEXIST: "nothing is overwritten, choose another name",
}


class WriteError(OSError):
    """A file that could not be written whole; nothing of it is left."""


class BeingWritten(WriteError):
    """Somebody else is writing the file or folder; nothing was touched."""


def _in_words(error: BaseException | None) -> str:
    """Return why a file could not be written, as the system says it; libraries speak of their own insides."""
    if isinstance(error, OSError) and error.strerror and error.errno != errno.EPIPE:
        return f"{error.strerror[0].lower()}{error.strerror[1:]}"
    return "writing stopped half-way"


def described(error: Exception, *, resumes: bool = False, target: str = "") -> str:
    """Return what went wrong; where the disk is at fault, with what helps.

    resumes: the same command goes on with what it has written. target: what was being written, if the error is silent.
    """
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if remedy is not None and isinstance(error, OSError) and (held := error.filename or target):
        remedy = f"{remedy} (it was to hold {held})"
    read_only = isinstance(error, OSError) and error.errno == errno.EROFS
    again = "; the same command then goes on from here" if resumes and not read_only else ""
    if remedy is not None:
        return f"{remedy}{again}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return f"{error}{again if isinstance(error, WriteError) else ''}"


def check_free(path: Path, *, overwrite: bool = False) -> None:
    """Raise OSError where nothing can be written at `path`; better before minutes of work than after.

    overwrite: an existing file may be replaced.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    if path.is_dir() or (path.exists() and not overwrite):
        raise FileExistsError(f"{path} exists: nothing is overwritten, choose another name")
    _require_writable(folder, path)


def check_folder(folder: Path, file: Path | None = None) -> None:
    """Raise OSError where no files can be written into `folder`, which may be yet to be made, or holds a checkpoint.

    file: the one that is to be written there, for the message.
    """
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file: choose another place for {(file or folder).name}")
    if file is None and (found := next((name for name, _ in _NO_RESULTS if (folder / name).is_file()), None)):
        raise FileExistsError(f"{folder} holds {dict(_NO_RESULTS)[found]}: choose another place for results")
    _require_writable(there, file or folder)


def _require_writable(folder: Path, wanted: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()  # permissions alone do not tell of /proc, quotas and network disks
    except OSError as error:
        raise PermissionError(f"folder {folder} is not writable: choose another place for {wanted.name}") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all. Raises WriteError."""
    with written_aside(path) as partial:
        partial.write_text(text, "utf-8", errors="backslashreplace")  # names of files may be no UTF-8


def _open_up(written: Path) -> None:
    """Give files the rights that the umask leaves to new ones: safetensors' own are for the owner alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in [written] if written.is_file() else written.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | (0o666 & ~mask))


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Be the only one that writes `path`, by a lock that the system takes back when its holder dies.

    Yields whether that is certain: not on a disk without locks. Raises BeingWritten where somebody else writes it.
    """
    lock = path.with_name(f"{path.name}.writing.lock")
    while True:
        certain = True
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise BeingWritten(
                f"{path} is being written by another program: wait for it, or choose another name"
            ) from None
        except OSError:  # a disk without locks
            certain = False
        if _is(lock, held):
            break
        os.close(held)  # its holder has removed it meanwhile
    try:
        yield certain
    finally:
        lock.unlink(missing_ok=True)
        os.close(held)


def _is(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a name beside `path` to write a file or folder to; at the end it takes the name `path`.

    Whatever goes wrong, what was written is removed, and so is what a killed writer left. Raises BeingWritten, and
    OSError for what cannot be written; libraries that write files raise errors of their own when the disk is full, and
    these become OSErrors too.
    """
    partial = path.with_name(path.name + ".writing")
    try:
        with _alone(path) as certain:
            if certain:  # then it is what a killed writer left
                _remove(partial)
            try:
                yield partial
                if path.is_dir():
                    raise FileExistsError(errno.EEXIST, "it exists")
                _open_up(partial)
                partial.replace(path)
            finally:
                _remove(partial)
    except BeingWritten:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        remedy = _WRITING.get(number or 0, "is the disk full?")
        reason = error.__cause__ if isinstance(error, WriteError) else error  # of a file in the folder
        raise WriteError(f"{path} cannot be written ({_in_words(reason)}): {remedy}") from error
