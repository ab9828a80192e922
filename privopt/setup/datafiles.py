"""Reads rows from files: floor 7, what `privopt.setup.data` builds a federation from.

CSV by column names, NumPy archives, and MNIST's idx files, each checked in full before a row is used.
An error names the file, the row and the column, never the value: the files may hold what must not be shown.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataError", "Table", "label_text", "read_idx", "read_mnist", "read_table"]


_LARGEST = float(np.finfo(np.float32).max)
"""Features are trained on in single precision; what is larger would turn into infinity there."""


class DataError(ValueError):
    """Rows that cannot be trained on: the file, where in it, and what to do."""


@dataclass(frozen=True, repr=False)
class Table:
    """Rows of one file: features, labels as text, and where each came from.

    Attributes:
        path: The file.
        x: Features, float64, shape ``(rows, ...)``.
        labels: One label a row, as text (``"1"`` for 1 and 1.0).
        columns: Names of the features of a CSV file; empty for an archive.
        places: Line (CSV) or index (archive) of each row, so that errors can point at one.
    """

    path: Path
    x: NDArray[np.float64]
    labels: list[str]
    columns: tuple[str, ...]
    places: Sequence[int]

    def __repr__(self) -> str:
        """Sizes only: rows are private."""
        return f"Table({self.path.name}, {len(self.labels)} rows, {self.x.shape[1:]} features)"

    def place(self, row: int) -> str:
        """Where row number `row` stands in the file."""
        return f"{self.path}, {'line' if self.columns else 'index'} {self.places[row]}"


def read_table(path: Path, target: str | None) -> Table:
    """Rows of a ``.csv`` file with a header, or of an ``.npz`` archive with arrays ``x`` and ``y``.

    Args:
        path: The file; its suffix says which of the two it is.
        target: Column that holds the label, for CSV.

    Returns:
        The rows, every feature a finite number.

    Raises:
        DataError: If it cannot be read, or a cell is missing or no finite number, or there are no rows.
    """
    if path.suffix.lower() == ".npz":
        return _read_npz(path)
    if path.suffix.lower() in (".csv", ".tsv", ".txt"):
        return _read_csv(path, target)
    raise DataError(
        f"Expected a .csv or .npz file, got {path}. Save the rows as CSV with a header, or as arrays x and y "
        "with numpy.savez."
    )


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"Expected a readable file, got {path}: {error.strerror or error}. Paths are relative to the folder "
        f"that privopt runs in ({Path.cwd()}); check the path and its permissions."
    )


def label_text(value: Any) -> str:
    """One spelling per label: 1, 1.0 and "1.0" are the same."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if math.isfinite(number) and number.is_integer() else text


# --- CSV --------------------------------------------------------------------------------------------------


def _read_csv(path: Path, target: str | None) -> Table:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError:
        raise DataError(f"Expected UTF-8 text in {path}, got other bytes. Save it as CSV, UTF-8.") from None
    header, _, _ = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        lines = [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise DataError(f"Expected CSV in {path}, got {error}. Is a quote left open?") from None
    names = [name.strip() for name in lines[0][1]] if lines else []
    column = _target_column(path, names, target)
    features = tuple(name for name in names if name != target)
    rows = [(number, line) for number, line in lines[1:] if line]
    if not rows:
        raise DataError(
            f"Expected rows below the header of {path}, got none. A client needs data of its own."
        )
    x = np.empty((len(rows), len(features)))
    labels = []
    for index, (number, line) in enumerate(rows):
        if len(line) != len(names):
            raise DataError(
                f"Expected {len(names)} cells as in the header, got {len(line)} in {path}, line {number}. "
                "A cell that holds the delimiter needs quotes."
            )
        if not line[column].strip():
            raise DataError(
                f"Expected a label in column {target!r}, got an empty cell in {path}, line {number}."
            )
        labels.append(label_text(line[column]))
        cells = line[:column] + line[column + 1 :]
        x[index] = [
            _number(cell, path, number, name) for cell, name in zip(cells, features, strict=True)
        ]  # fmt: skip
    return Table(path, x, labels, features, [number for number, _ in rows])


def _target_column(path: Path, names: list[str], target: str | None) -> int:
    if len(set(names)) != len(names) or not all(names):
        raise DataError(
            f"Expected a header of distinct names in the first line of {path}, got "
            f"{len(names)} cells with {len(set(filter(None, names)))} different names. Name each column once."
        )
    if target is None:
        raise DataError(
            f"Expected data.target, the column of {path} that holds the label, got none. "
            f"Columns: {', '.join(names)}."
        )
    if target not in names:
        raise DataError(
            f"Expected the label's column {target!r} in {path}, got columns {', '.join(names) or '(none)'}. "
            "Set data.target to one of them, or add the column."
        )
    if len(names) < 2:
        raise DataError(f"Expected at least one feature beside {target!r} in {path}, got none.")
    return names.index(target)


def _number(cell: str, path: Path, line: int, name: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        got = "an empty cell" if not cell.strip() else "text"
        raise DataError(
            f"Expected a number, got {got} in {path}, line {line}, column {name!r}. Fill it in, drop the "
            "row or the column, or turn categories into 0/1 columns."
        ) from None
    if not abs(value) <= _LARGEST:
        raise DataError(
            f"Expected a finite number, got NaN or infinity in {path}, line {line}, column {name!r}. "
            "Fill it in, or drop the row or the column."
        )
    return value


# --- NumPy archives ---------------------------------------------------------------------------------------


def _read_npz(path: Path) -> Table:
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile
            with np.load(file, allow_pickle=False) as archive:
                found = list(archive.files)
                arrays = [archive[name] for name in ("x", "y") if name in found]
    # RuntimeError is what zipfile raises at encrypted members and, by a subclass, at unknown compression.
    except (zipfile.BadZipFile, ValueError, EOFError, RuntimeError, zlib.error):
        raise DataError(
            f"Expected a NumPy archive of plain arrays in {path}, got something else. "
            "Write it with numpy.savez(path, x=features, y=labels); pickled objects are not loaded."
        ) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(arrays) != 2:
        raise DataError(
            f"Expected arrays x and y in {path}, got {', '.join(found) or 'none'}. "
            "Write it with numpy.savez(path, x=features, y=labels)."
        )
    x, y = arrays
    if x.ndim < 2 or y.shape != x.shape[:1] or len(x) == 0 or 0 in x.shape:
        raise DataError(
            f"Expected x of shape (rows, features...) and y of shape (rows,), with rows, got {x.shape} and "
            f"{y.shape} in {path}."
        )
    if x.dtype.kind not in "biuf":
        raise DataError(f"Expected real numbers as x in {path}, got dtype {x.dtype}.")
    if y.dtype.kind not in "biufUS":
        raise DataError(f"Expected labels (integers or text) as y in {path}, got dtype {y.dtype}.")
    bad = np.argwhere(~(np.abs(x, dtype=np.float64) <= _LARGEST))
    if len(bad):
        raise DataError(
            f"Expected finite numbers, got NaN or infinity in {path}, x{list(map(int, bad[0]))} and "
            f"{len(bad) - 1} more. Fill them in, or drop those rows."
        )
    names = y.astype(str) if y.dtype.kind == "U" else y.astype("U") if y.dtype.kind == "S" else y
    return Table(path, x.astype(np.float64), [label_text(value) for value in names], (), range(len(x)))


# --- MNIST ------------------------------------------------------------------------------------------------


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """An idx file of unsigned bytes, plain or gzip.

    Args:
        path: The file.
        dimensions: How many dimensions it must have (3 for images, 1 for labels).

    Returns:
        The array that the header describes.

    Raises:
        DataError: If it cannot be read, or its header or size is not what it must be.

    References:
        The format is described on http://yann.lecun.com/exdb/mnist/.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"Expected a whole gzip file, got a damaged one: {path}. Fetch it again.") from None
    except OSError as error:
        raise _unreadable(path, error) from error
    header = 4 + 4 * dimensions
    # Magic number: two zeros, 8 for unsigned bytes, the number of dimensions.
    if len(data) < header or data[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"Expected an idx file of {dimensions}-dimensional unsigned bytes, got another header in {path}. "
            "Is it one of MNIST's four files?"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:header])
    if math.prod(shape) != len(data) - header:
        raise DataError(
            f"Expected {math.prod(shape)} bytes after the header of {path}, as it says, got "
            f"{len(data) - header}. The file is cut short or damaged; fetch it again."
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def read_mnist(
    folder: Path,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Train images and labels, test images and labels, from a folder of the four idx files.

    Raises:
        DataError: If one is missing or damaged, or images and labels differ in number.
    """
    parts = []
    for split in ("train", "t10k"):
        images = read_idx(_mnist_file(folder, f"{split}-images", "idx3-ubyte"), 3)
        labels = read_idx(_mnist_file(folder, f"{split}-labels", "idx1-ubyte"), 1)
        if len(images) != len(labels) or not len(images):
            raise DataError(
                f"Expected as many labels as images in {folder}, got {len(labels)} and {len(images)} "
                f"({split}). The files are not of one set."
            )
        if labels.max() > 9:
            raise DataError(f"Expected labels 0 to 9 in {folder}, got others ({split}).")
        parts += [images, labels]
    return parts[0], parts[1], parts[2], parts[3]


def _mnist_file(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{dot}{kind}{end}" for dot in "-." for end in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"Expected {names[0]} (or .gz) in {folder}, got no such file. data.path is the folder that holds "
        "MNIST's four idx files; privopt downloads nothing."
    )
