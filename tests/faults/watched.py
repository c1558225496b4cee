"""Watches what a process does to files below a folder: Python's own calls and those of SQLite.

Everything is told of before it is made, so that it can be made to fail, and after it was made. It is meant for
forked processes: what it puts in the place of `os.open` and its like stays there.
"""

import builtins
import errno
import io
import os
from dataclasses import dataclass
from pathlib import Path

from pybrush.record import files
from tests.faults import sqlite_files


@dataclass(frozen=True)
class Change:
    """One change; paths are relative to the folder that is watched.

    Attributes:
        kind: create, mkdir, write, truncate, sync, rename, link, unlink, rmdir; or "note", which changes nothing.
    """

    kind: str
    path: str
    data: bytes = b""
    offset: int = 0
    size: int = 0
    target: str = ""


class Watched:
    """Watches this process, for the rest of its life.

    Args:
        folder: changes below it are told of.
        before: called with each change before it is made; what it raises is raised where the change was asked for.
        after: called with each change once it was made.
    """

    def __init__(self, folder, before=lambda change: None, after=lambda change: None):
        self.folder, self.before, self.after = Path(folder).resolve(), before, after
        sqlite_files.Between(self.change)
        self.patch_names()
        self.patch_streams()
        files.observer = self.note

    def inside(self, path, folder=None):
        """Return a path relative to the watched folder, or None outside of it."""
        if isinstance(path, int):
            path = Path(f"/proc/self/fd/{path}").readlink()
        elif folder is not None:
            path = Path(f"/proc/self/fd/{folder}").readlink() / path
        path = Path.cwd() / os.fsdecode(path)
        path = path.parent.resolve() / path.name
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else None

    def change(self, kind, path, make, *, dir_fd=None, target=None, **what):
        """Make a change and tell of it."""
        inside = self.inside(path, dir_fd)
        if inside is None:
            return make()
        told = Change(kind, inside, target=self.inside(target) or "" if target is not None else "", **what)
        self.before(told)
        answer = make()
        self.after(told)
        return answer

    def note(self, step):
        self.after(Change("note", step))

    def patch_names(self):
        """Watch what changes the names in folders, and syncs."""
        opened, synced = os.open, os.fsync

        def spy_open(path, flags, mode=0o777, *, dir_fd=None):
            make = lambda: opened(path, flags, mode, dir_fd=dir_fd)  # noqa: E731
            where = Path(path) if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}") / path
            if flags & os.O_CREAT and not where.exists():
                return self.change("create", path, make, dir_fd=dir_fd)
            if flags & os.O_TRUNC and where.stat().st_size:
                return self.change("truncate", path, make, dir_fd=dir_fd)
            return make()

        os.open = spy_open
        os.fsync = os.fdatasync = lambda handle: self.change("sync", handle, lambda: synced(handle))
        for name, kind in {"mkdir": "mkdir", "rmdir": "rmdir", "unlink": "unlink", "remove": "unlink"}.items():
            setattr(os, name, self.one_path(getattr(os, name), kind))
        for name, kind in {"rename": "rename", "replace": "rename", "link": "link"}.items():
            setattr(os, name, self.two_paths(getattr(os, name), kind))

    def one_path(self, real, kind):
        def spy(path, *arguments, dir_fd=None):
            make = lambda: real(path, *arguments, dir_fd=dir_fd)  # noqa: E731
            where = path if dir_fd is None else f"/proc/self/fd/{dir_fd}/{path}"
            if os.path.lexists(where) == (kind == "mkdir"):  # it will fail
                return make()
            return self.change(kind, path, make, dir_fd=dir_fd)

        return spy

    def two_paths(self, real, kind):
        def spy(source, target, **more):
            make = lambda: real(source, target, **more)  # noqa: E731
            if kind == "link" and os.path.lexists(target):
                return make()
            return self.change(kind, source, make, target=target)

        return spy

    def patch_streams(self):
        """Watch what is written through streams."""
        opened = io.open
        watched = self

        class Stream(io.FileIO):
            def write(self, data):
                data, end = bytes(data), os.fstat(self.fileno()).st_size
                offset = end if "a" in self.mode else self.tell()
                write = super().write
                return watched.change("write", self.fileno(), lambda: write(data), data=data, offset=offset)

            def truncate(self, size=None):
                size, truncate = self.tell() if size is None else size, super().truncate
                return watched.change("truncate", self.fileno(), lambda: truncate(size), size=size)

        def spy_open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, *more, **settings):
            if not set(mode) & set("wax+") or (not isinstance(file, int) and self.inside(file) is None):
                return opened(file, mode, buffering, encoding, errors, newline, *more, **settings)
            raw = Stream(file, mode.replace("b", "").replace("t", ""), opener=os.open)
            kind = io.BufferedRandom if "+" in mode else io.BufferedWriter
            return kind(raw) if "b" in mode else io.TextIOWrapper(kind(raw), encoding, errors, newline)

        io.open = builtins.open = spy_open
        os.fdopen = lambda handle, mode="r", *more, **settings: spy_open(handle, mode, *more, **settings)


GROWS = ("create", "mkdir", "write", "link")
"""Changes that need room."""


def full(number):
    """Return what lets the n-th change that needs room, and all such after it, fail as on a full disk."""
    count = 0

    def before(change):
        nonlocal count
        count += change.kind in GROWS
        if count >= number and change.kind in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), change.path)

    return before


def broken(number):
    """Return what lets the n-th change fail, once, as where a disk cannot be reached."""
    count = 0

    def before(change):
        nonlocal count
        count += 1
        if count == number:
            raise OSError(errno.EIO, os.strerror(errno.EIO), change.path)

    return before
