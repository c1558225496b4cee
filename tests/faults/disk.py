"""The journal of what a process did to files, and the disks that a crash may leave.

`record` lists the changes of a call in a forked process. `Journal.disks` builds, from the list, what a disk may
hold when the machine stops after any of them: all of it (the process was killed), or all that was synced and any
part of the rest (the power failed). The rules are those of POSIX with renames that are atomic: what was written is
safe once its file is synced, names once their folder is; the rest may come in any order, in part, as zeros, or never.
"""

import os
import pickle
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tests.core.processes import fork, status_of
from tests.faults.watched import Change, Watched


def record(work, folder):
    """Do some work in a forked process and return the journal of what it changed below a folder."""
    before = Tree.of(folder)
    reader, writer = os.pipe()

    def watched():
        changes, stream = [], os.fdopen(writer, "wb")
        Watched(folder, after=changes.append)
        work()
        pickle.dump(changes, stream)
        stream.close()

    child = fork(watched)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read()
    assert status_of(child) == 0
    journal = Journal(before, pickle.loads(told))
    assert journal.after(len(journal)) == Tree.of(folder), "the journal does not tell of every change"
    return journal


@dataclass
class Tree:
    """The files of a folder, as inodes: `names` of each folder and `contents` of each file; inode 0 is the folder."""

    names: dict = field(default_factory=lambda: {0: {}})
    contents: dict = field(default_factory=dict)

    @classmethod
    def of(cls, folder):
        """Read a folder."""
        tree = cls()
        inodes = {folder: 0}
        for path in sorted(folder.rglob("*")):
            inodes[path] = tree.new(is_folder=path.is_dir())
            tree.names[inodes[path.parent]][path.name] = inodes[path]
            if path.is_file():
                tree.contents[inodes[path]] = path.read_bytes()
        return tree

    def new(self, *, is_folder):
        """Make an inode without a name."""
        inode = len(self.names) + len(self.contents)
        if is_folder:
            self.names[inode] = {}
        else:
            self.contents[inode] = b""
        return inode

    def copy(self):
        return Tree({inode: dict(names) for inode, names in self.names.items()}, dict(self.contents))

    def find(self, path):
        """Return the inode of a path."""
        inode = 0
        for name in Path(path).parts:
            inode = self.names[inode][name]
        return inode

    def listed(self, inode=0, above=""):
        """Return path -> content of every file that has a name, None for folders."""
        found = {}
        for name, held in self.names[inode].items():
            found[above + name] = self.contents.get(held)
            if held in self.names:
                found |= self.listed(held, f"{above}{name}/")
        return found

    def __eq__(self, other):
        return self.listed() == other.listed()

    def write_to(self, folder):
        """Make a folder hold just this."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path, content in self.listed().items():
            if content is None:
                (folder / path).mkdir(mode=0o700)
            else:
                handle = os.open(folder / path, os.O_WRONLY | os.O_CREAT, 0o600)
                os.write(handle, content)
                os.close(handle)


@dataclass(frozen=True)
class Step:
    """A change, in terms of inodes.

    Attributes:
        place: what has to be synced for it to last: a file's inode for what was written, else a folder's.
        also: another place whose sync will do, for renames.
        leaves: (folder, name) pairs that it removes. enters: (folder, name, inode) triples that it makes.
    """

    change: Change
    place: int
    also: int = -1
    leaves: tuple = ()
    enters: tuple = ()


class Journal:
    """What was changed, in order, and the disks that may be left of it."""

    def __init__(self, before, changes):
        self.before, self.steps = before, []
        self._inodes = before.copy()
        for change in changes:
            self.steps.append(self._step(change))
            self._do(self._inodes, self.steps[-1])

    def __len__(self):
        return len(self.steps)

    def _step(self, change):
        """Say which inodes a change is about, as the folder is now; new ones are made in every tree."""
        tree, path = self._inodes, Path(change.path)
        if change.kind == "note":
            return Step(change, -1)
        if change.kind in ("write", "truncate", "sync"):
            return Step(change, tree.find(path))
        folder = tree.find(path.parent)
        if change.kind in ("create", "mkdir"):
            inode = tree.new(is_folder=change.kind == "mkdir")
            self.before.new(is_folder=change.kind == "mkdir")
            return Step(change, folder, enters=((folder, path.name, inode),))
        if change.kind in ("unlink", "rmdir"):
            return Step(change, folder, leaves=((folder, path.name),))
        target = Path(change.target)
        there, inode = tree.find(target.parent), tree.find(path)
        leaves = ((folder, path.name),) if change.kind == "rename" else ()
        return Step(change, there, folder, leaves=leaves, enters=((there, target.name, inode),))

    @staticmethod
    def _do(tree, step, data=None):
        change = step.change
        for folder, name in step.leaves:
            tree.names[folder].pop(name, None)
        for folder, name, inode in step.enters:
            tree.names[folder][name] = inode
        if change.kind == "write":
            data, held = change.data if data is None else data, tree.contents[step.place].ljust(change.offset, b"\0")
            tree.contents[step.place] = held[: change.offset] + data + held[change.offset + len(data) :]
        if change.kind == "truncate":
            tree.contents[step.place] = tree.contents[step.place][: change.size].ljust(change.size, b"\0")

    def after(self, count):
        """Return what the files are after the first `count` changes: the process was killed there."""
        tree = self.before.copy()
        for step in self.steps[:count]:
            self._do(tree, step)
        return tree

    def unsynced(self, count):
        """Return the numbers of the changes, of the first `count`, that a power failure may undo."""
        synced, open_ = set(), []
        for number in range(count - 1, -1, -1):
            step = self.steps[number]
            if step.change.kind == "sync":
                synced.add(step.place)
            elif step.change.kind != "note" and not {step.place, step.also} & synced:
                open_.append(number)
        return open_[::-1]

    def after_power_failure(self, count, luck):
        """Return what the disk may hold if power fails after the first `count` changes.

        Args:
            count: changes that were made.
            luck: number of an unsynced change -> "done", "lost", "torn" (half of what was written) or "zeros".
        """
        tree, open_ = self.before.copy(), set(self.unsynced(count))
        for number, step in enumerate(self.steps[:count]):
            fate, data = luck(number) if number in open_ else "done", step.change.data
            if fate == "torn":
                self._do(tree, step, data[: len(data) // 2])
            elif fate == "zeros":
                self._do(tree, step, bytes(len(data)))
            elif fate == "done":
                self._do(tree, step)
        return tree

    def disks(self, seed, samples):
        """Yield (changes made, how, tree) for crashes after every change, each tree once after what was reported.

        Args:
            seed: of the samples.
            samples: random mixtures for each crash, besides "killed", "nothing unsynced", "names without contents" and
                "contents without names".
        """
        seen = set()
        for count in range(len(self) + 1):
            for how, luck in self._fates(count, seed, samples):
                tree = self.after_power_failure(count, luck)
                crash = hash((frozenset(tree.listed().items()), *self.commits(count)))
                if crash not in seen:
                    seen.add(crash)
                    yield count, how, tree

    def _fates(self, count, seed, samples):
        """Yield (how, luck) for crashes after the first `count` changes."""
        is_write = [step.change.kind in ("write", "truncate") for step in self.steps]
        yield "killed", lambda number: "done"
        yield "nothing unsynced", lambda number: "lost"
        yield "names, and zeros", lambda number: "zeros" if is_write[number] else "done"
        yield "contents without names", lambda number: "done" if is_write[number] else "lost"
        for sample in range(samples):
            chance = random.Random(f"{seed} {count} {sample}")
            drawn = [chance.choice(("done", "lost", "torn", "zeros")) for _ in range(count)]
            yield f"sample {sample}", drawn.__getitem__

    def announced(self, count):
        """Return the steps that were announced within the first `count` changes."""
        return [step.change.path for step in self.steps[:count] if step.change.kind == "note"]

    def last(self, count):
        """Return the last of them, in quotes."""
        return repr((self.announced(count) or ["none"])[-1])

    def commits(self, count):
        """Return the purposes of the commits to the ledger that were reported within the first `count` changes."""
        ends = "after commit "
        return [step.removeprefix(ends) for step in self.announced(count) if step.startswith(ends)]
