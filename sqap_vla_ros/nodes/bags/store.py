"""The files of a recording: what a path stands for, and readers for rosbag2 folders, single files and ROS 1 bags."""

from __future__ import annotations

import contextlib
import functools
import re
import shlex
import struct
from pathlib import Path

from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader as Ros2Reader

from sqap_vla_ros.git_lfs import is_pointer
from sqap_vla_ros.yaml_files import read_yaml

_STORES = (".mcap", ".db3")
_ZSTD = ".zstd"  # after the name of a store that rosbag2 compressed whole
_ROS1_MAGIC = b"#ROSBAG V2.0"
_MCAP_MAGIC = b"\x89MCAP0\r\n"
_SQLITE_MAGIC = b"SQLite format 3\0"
_FORMS = "a rosbag2 folder, a file in one (.mcap, .db3), or a ROS 1 .bag file"


class BagError(ValueError):
    """A recording that cannot be read or does not hold what is needed: says what, and what helps."""


class NoBag(BagError):
    """A path at which there is no recording of a kind that is read as a bag."""


def bag_path(path: str | Path) -> Path:
    """Return the folder or file that holds the recording named by `path`.

    A file that a metadata.yaml beside it lists stands for its folder; any other file stands alone.
    Raises BagError naming what is missing, NoBag where it may be a recording of another kind.
    """
    given = Path(path).expanduser()
    if not given.exists():
        if address := re.match(r"([a-z][a-z0-9+.-]+):/", str(given)):
            raise NoBag(f"{given} is an address ({address[1]}), and nothing is downloaded: download it, give {_FORMS}")
        raise NoBag(f"bag {given} does not exist: give {_FORMS}")
    if given.is_dir():
        _stores_in(given)
        return given
    if given.name == "metadata.yaml" or (given.suffix in _STORES and given.name in _listed_in(given.parent)):
        return given.parent
    if given.suffix == _ZSTD:
        raise BagError(
            f"{given} is compressed as a file: give the folder that its metadata.yaml is in, or `zstd -d` it"
        )
    if given.suffix == ".active":
        raise BagError(f"{given} was not finished: rename it to end in .bag, then `rosbag reindex` it")
    if given.suffix not in (*_STORES, ".bag"):
        raise NoBag(f"{given} is not a bag: give {_FORMS}")
    return given


def is_recording(path: Path) -> bool:
    """Return whether a path that exists is a file, or a folder that holds a bag or bags, readable or not."""
    return path.is_file() or (
        path.is_dir()
        and any(child.name == "metadata.yaml" or child.suffix in (*_STORES, ".bag", _ZSTD) for child in path.iterdir())
    )


def open_readers(path: Path) -> list[Ros1Reader] | list[Ros2Reader]:
    """Open what `bag_path` returned. Raises BagError with the tool that repairs it, where one does."""
    for file in [path] if path.is_file() else _stores_in(path):
        if is_pointer(file):
            raise BagError(f"{file} is a Git LFS pointer, not the recording: run `git lfs pull` in its repository")
        log = file.with_name(f"{file.name}-wal")  # of a recorder that did not end
        if file.suffix == ".db3" and log.is_file() and log.stat().st_size:
            raise BagError(
                f"{log} holds messages that are not yet in {file.name}: once the recorder has ended, bring them in "
                f"with `sqlite3 {file.name} 'PRAGMA wal_checkpoint(TRUNCATE)'`"
            )
    if path.is_file() and path.suffix == ".bag":
        return [_open_ros1(path)]
    if path.is_file():
        return _open_ros2([path], path)
    if not (path / "metadata.yaml").is_file():
        return _open_ros2(_stores_in(path), path)
    try:
        return _open_ros2([path], path)
    except BagError as error:
        # one topic of another serialisation makes rosbags refuse the folder; the files by themselves are readable
        if "Serialization format" in str(error) and (stores := _stores_in(path)):
            return _open_ros2(stores, path)
        raise


def require_playable(path: str | Path) -> None:
    """Raise BagError for a recording that cannot be opened or holds no messages."""
    found = bag_path(path)
    readers = open_readers(found)
    try:
        if not any(connection.msgcount for reader in readers for connection in reader.connections):
            raise BagError(f"{found} has no messages to play")
    finally:
        for reader in readers:
            with contextlib.suppress(AttributeError, TypeError):  # of an index whose values are no paths
                reader.close()


def require_new(path: Path) -> None:
    """Raise BagError where a recording that is to be written is there already."""
    if path.exists():
        raise BagError(f"{path} exists already: choose another folder, nothing is overwritten")


def unreadable(path: Path, error: BaseException) -> BagError:
    """Return the error of a recording that breaks off or is damaged, with the tool that repairs it."""
    if isinstance(error, BagError):
        return error
    text = " ".join((str(error) or type(error).__name__).split()).rstrip(".")
    text = re.sub(r"\(['\"](.*?)\.?['\"],\)", r"\1", text)  # the arguments of another exception
    if isinstance(error, (MemoryError, OverflowError)):  # lengths and counts that flipped bits have made
        text = "a length in it is impossible"
    stores = [path] if path.is_file() else sorted(child for child in path.iterdir() if child.suffix in _STORES)
    if path.is_dir() and "files are missing" in text:
        return BagError(
            f"{path} cannot be read: {text}. Bring back what its metadata.yaml lists, or read the files that are there "
            f"after `ros2 bag reindex {_typed(path)}`"
        )
    unnamed = functools.reduce(lambda left, file: left.replace(str(file), ""), [*stores, path], text)
    metadata = path / "metadata.yaml"
    if version := re.search(r"Rosbag2 version (\S+) not supported", text):
        return BagError(
            f"{path} is of rosbag2's format {version[1]}, which is newer than what is read: see `ros2 bag convert`"
        )
    if compression := re.search(r"Compression format (\S+) is not supported", text):
        return BagError(f"{path} is compressed as {compression[1]}: rosbag2 writes zstd; see `ros2 bag convert`")
    words = ("metadata", "yaml", "not a database") if stores and stores[0].suffix == ".mcap" else ("metadata", "yaml")
    if metadata.is_file() and (any(word in unnamed.lower() for word in words) or not _is_yaml(metadata)):
        return BagError(
            f"{path} cannot be read. Its metadata.yaml is damaged: make it anew with `ros2 bag reindex {_typed(path)}` "
            f"(the file {_metadata_problem(metadata, unnamed)})"
        )
    if "Unsupported chunk compression" in text:
        return BagError(f"{path} cannot be read: {text}: rosbag2 writes zstd, lz4 or none")
    if other := next((store for store in stores if store.suffix == ".db3" and not _is_cut(store, text)), None):
        return BagError(f"{other} is no database of rosbag2: {text}")
    if path.is_file() and path.suffix == ".bag":
        repair = f"`rosbag reindex {_typed(path)}`"
    elif any(store.suffix == ".mcap" for store in stores):
        names = " ".join(store.name for store in stores)
        repair = f"`mcap recover` on {names}" + ("" if path.is_file() else f", then `ros2 bag reindex {_typed(path)}`")
    else:
        repair = f"`sqlite3 {stores[0].name if stores else 'FILE.db3'} .recover`"
    return BagError(f"{path} cannot be read: {text}. If the recording was cut off, try {repair}")


def _typed(path: Path) -> str:
    """Return a path as a shell takes it."""
    return shlex.quote(str(path))


def _is_yaml(file: Path) -> bool:
    try:
        file.read_text("utf-8")
        read_yaml(file)
    except (OSError, RecursionError, ValueError):
        return False
    return True


def _metadata_problem(file: Path, text: str) -> str:
    if "not a database" in text:
        return "names another storage than that of the files"
    try:
        value = read_yaml(file)
    except (OSError, RecursionError, ValueError) as error:
        line = re.search(r"line (\d+)", str(error))
        return f"is not valid YAML near line {line[1]}" if line else "is not valid YAML"
    return "is empty" if value is None else "lacks what rosbag2 writes into it"


def _is_cut(database: Path, reason: str) -> bool:
    """Return whether a database may have been one of rosbag2: SQLite's, with its tables or shorter than it says."""
    with database.open("rb") as file:
        header = file.read(100)
    if not header.startswith(_SQLITE_MAGIC[: len(header)]):
        return False
    if "missing tables" not in reason or len(header) < 32:
        return True
    (page,), (pages,) = struct.unpack_from(">H", header, 16), struct.unpack_from(">I", header, 28)
    return database.stat().st_size < (65536 if page == 1 else int(page)) * int(pages)


def _open_ros1(path: Path) -> Ros1Reader:
    with path.open("rb") as file:
        start = file.read(len(_ROS1_MAGIC))
        if start.startswith(b"#ROS") and start != _ROS1_MAGIC:
            raise BagError(f"{path} is a bag of an old format ({start.decode(errors='replace')}): `rosbag migrate` it")
        if start != _ROS1_MAGIC:
            raise BagError(f"{path} is not a ROS 1 bag, which begins with {_ROS1_MAGIC.decode()!r}: give {_FORMS}")
    try:
        reader = Ros1Reader(path)
        reader.open()
    except Exception as error:  # damaged bytes make the parser raise anything
        raise unreadable(path, error) from error
    return reader


def _open_ros2(files: list[Path], path: Path) -> list[Ros2Reader]:
    for store in files if path.is_file() else _stores_in(path):
        if store.suffix == ".mcap" and (problem := _mcap_problem(store)) is not None:
            raise BagError(f"{store} {problem}")
    readers: list[Ros2Reader] = []
    try:
        for file in files:
            reader = Ros2Reader(file)
            reader.open()
            readers.append(reader)
    except Exception as error:  # as above
        for reader in readers:
            reader.close()
        raise unreadable(path, error) from error
    return readers


def _mcap_problem(path: Path) -> str | None:
    """Say what an MCAP file is instead of a ROS 2 recording, None where its beginning is that of one."""
    with path.open("rb") as file:
        began = file.read(2**12)
    if began[: len(_MCAP_MAGIC)] != _MCAP_MAGIC[: len(began)]:
        if began.startswith((b"\x89MCAP0\n", b"\x89MCAP0\r\r\n")):
            return "was copied as text, which changed its line ends: copy it again as binary (git: `*.mcap -text`)"
        return f"is no MCAP file, which begins with {_MCAP_MAGIC!r}: give {_FORMS}"
    try:  # magic, then the header record: its kind, its length, and its profile as length and text
        (length,) = struct.unpack_from("<I", began, len(_MCAP_MAGIC) + 9)
        profile = began[len(_MCAP_MAGIC) + 13 :][:length].decode()
    except (struct.error, UnicodeDecodeError):
        return None  # damaged: the reader says how
    if profile == "ros1":
        return "is a ROS 1 recording in an MCAP file: give the .bag file that it was converted from"
    if profile != "ros2":
        return f"is no ROS 2 recording: its MCAP profile is {profile[:40]!r}, 'ros2' is needed"
    return None


def _stores_in(folder: Path) -> list[Path]:
    """Return the storage files of a folder in order of name. Raises BagError where it is no rosbag2 bag."""
    stores = sorted(child for child in folder.iterdir() if child.suffix in _STORES and child.is_file())
    if stores or (folder / "metadata.yaml").is_file():
        return stores
    if ros1 := sorted(folder.glob("*.bag")):
        raise BagError(f"{folder} is a folder of bags: name one of {', '.join(bag.name for bag in ros1)}")
    if packed := sorted(folder.glob(f"*{_ZSTD}")):
        raise BagError(f"{folder} holds {packed[0].name} and no metadata.yaml: `zstd -d` the file")
    raise NoBag(f"{folder} holds neither metadata.yaml nor .mcap or .db3 files: it is no rosbag2 bag")


def _listed_in(folder: Path) -> set[str]:
    """Return the names of the files that the metadata.yaml of a folder lists; none where it has no readable one."""
    try:
        metadata = read_yaml(folder / "metadata.yaml")
        return {Path(name).name for name in metadata["rosbag2_bagfile_information"]["relative_file_paths"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
