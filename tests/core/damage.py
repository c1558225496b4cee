"""What may happen to the files of a record, and where its stages lie."""

from contextlib import closing

from pybrush.record import Record
from tests.core.test_fit_and_forget import KEY


def cut(path):
    """Take the end off a file."""
    path.write_bytes(path.read_bytes()[:-3])


def flip(path):
    """Change one bit of a file."""
    data = path.read_bytes()
    path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


def lose(path):
    """Remove a file."""
    path.unlink()


def stages(folder):
    """Return (shard, slice) -> folder of each stage."""
    with closing(Record.open(folder, KEY)) as record:
        return {(stage.shard, stage.slice): folder / "stages" / stage.key for stage in record.graph()}
