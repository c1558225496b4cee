"""Stands between SQLite and its files: each change is told of before it is made, and can be refused.

SQLite itself is untouched: the methods of its own file system layer (https://sqlite.org/c3ref/io_methods.html)
are called by ours. It works where Python uses a shared library of SQLite.
"""

import _sqlite3
import ctypes
import errno
import os
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p, string_at
from pathlib import Path

OK, IO_ERROR, FULL = 0, 10, 13
CREATED, JOURNAL = 0x4, 0x800
"""Flags of xOpen: the file may be made; it is a rollback journal."""

Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
Sync = CFUNCTYPE(c_int, c_void_p, c_int)
Close = CFUNCTYPE(c_int, c_void_p)
Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)  # SQLite keeps the pointer to the name
Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)


class Methods(ctypes.Structure):
    """The methods of an open file, of every version: the first ones are named."""

    _fields_ = [
        ("version", c_int), ("close", c_void_p), ("read", c_void_p), ("write", c_void_p), ("truncate", c_void_p),
        ("sync", c_void_p), ("others", c_void_p * 13),
    ]  # fmt: skip


class File(ctypes.Structure):
    """An open file begins with its methods."""

    _fields_ = [("methods", POINTER(Methods))]


class Layer(ctypes.Structure):
    """SQLite's file system layer, `sqlite3_vfs`, up to what is replaced here."""

    _fields_ = [
        ("version", c_int), ("size", c_int), ("longest", c_int), ("next", c_void_p), ("name", c_char_p),
        ("data", c_void_p), ("open", c_void_p), ("delete", c_void_p),
    ]  # fmt: skip


def library():
    """Return the library that Python's sqlite3 uses, or None where it cannot be reached."""
    try:
        loaded = ctypes.CDLL(getattr(_sqlite3, "__file__", None))
        loaded.sqlite3_vfs_find.restype = POINTER(Layer)
    except (OSError, AttributeError):
        return None
    return loaded


_installed = []
"""What C points to must not be collected."""


class Between:
    """Installed for the rest of this process.

    Args:
        change: called as change(kind, path, make, **what) around each change; `make()` makes it and returns SQLite's
            answer; an OSError that it raises is told to SQLite as a full disk or a failed one.
    """

    def __init__(self, change):
        _installed.append(self)
        self.change, self.kept, self.unsynced = change, [], set()
        self.layer = library().sqlite3_vfs_find(None).contents
        self.open, self.delete = Open(self.layer.open), Delete(self.layer.delete)
        self.layer.open, self.layer.delete = self.pointer(Open, self.opened), self.pointer(Delete, self.deleted)

    def pointer(self, kind, function):
        """Return a C pointer to a function, which lives as long as this."""
        made = kind(function)
        self.kept.append(made)
        return ctypes.cast(made, c_void_p).value

    def answered(self, kind, path, make, **what):
        """Return SQLite's answer to a change."""
        try:
            return self.change(kind, path, make, **what)
        except OSError as error:
            return FULL if error.errno == errno.ENOSPC else IO_ERROR

    def opened(self, layer, name, file, flags, told):
        path = string_at(name).decode() if name else None
        make = lambda: self.open(layer, name, file, flags, told)  # noqa: E731
        is_new = path is not None and bool(flags & CREATED) and not Path(path).exists()
        answer = self.answered("create", path, make) if is_new else make()
        if answer == OK and path is not None:
            if is_new and flags & JOURNAL:
                self.unsynced.add(path)  # SQLite syncs the folder with the first sync of a journal
            self.watch(file, path)
        return answer

    def watch(self, file, path):
        """Put our methods in the place of an open file's own."""
        file = ctypes.cast(file, POINTER(File)).contents
        own = file.methods.contents
        ours = Methods.from_buffer_copy(own)
        write, truncate, sync = Write(own.write), Truncate(own.truncate), Sync(own.sync)

        def written(this, data, count, offset):
            make = lambda: write(this, data, count, offset)  # noqa: E731
            return self.answered("write", path, make, data=string_at(data, count), offset=offset)

        def truncated(this, size):
            return self.answered("truncate", path, lambda: truncate(this, size), size=size)

        def synced(this, flags):
            answer = self.answered("sync", path, lambda: sync(this, flags))
            if answer == OK and path in self.unsynced:
                self.unsynced.discard(path)
                answer = self.answered("sync", Path(path).parent, lambda: OK)
            return answer

        ours.write, ours.truncate = self.pointer(Write, written), self.pointer(Truncate, truncated)
        ours.sync = self.pointer(Sync, synced)
        self.kept.append(ours)
        file.methods = ctypes.pointer(ours)

    def deleted(self, layer, name, folder_too):
        path = name.decode()
        if not Path(path).exists():
            return self.delete(layer, name, folder_too)
        answer = self.answered("unlink", path, lambda: self.delete(layer, name, 0))
        if answer == OK and folder_too:
            handle = os.open(Path(path).parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        return answer
