"""Where the shipped data lies, and writing a file whole or not at all. Knows nothing about what is in the files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def data_path(*parts: str) -> Path:
    """Path below the shipped data: inside an installed wheel, else beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    root = package / "data" if (package / "data").is_dir() else package.parent / "data"
    return root.joinpath(*parts)


@contextlib.contextmanager
def written_whole(path: str | os.PathLike):
    """Yields a temporary path beside `path`, and renames it to `path` only when the block succeeds.

    A failure (full disk, interrupt) leaves an earlier file at `path` as it was and removes the half-written one.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)  # mkstemp lets only the owner read
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(table, path: str | os.PathLike) -> None:
    """Writes an Arrow table as one small Parquet file, whole or not at all.

    The bytes of decimal numbers in lists (weights, times) are stored first bytes first: about half the size.
    """
    import pyarrow.parquet as pq
    import pyarrow.types as kinds

    lists = [field for field in table.schema if kinds.is_list(field.type)]
    split = [f"{field.name}.list.element" for field in lists if kinds.is_floating(field.type.value_type)]
    rest = {f"{field.name}.list.element" for field in lists} | set(table.schema.names)
    with written_whole(path) as temporary:
        pq.write_table(
            table,
            temporary,
            compression="zstd",
            compression_level=15,
            use_dictionary=sorted(rest - {*split}),
            use_byte_stream_split=split,
        )


__all__ = ["data_path", "write_table", "written_whole"]
