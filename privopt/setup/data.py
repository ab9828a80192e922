"""Who holds which rows: floor 7, from the ``[data]`` table to the clients of a run.

Built-in public sets are dealt to clients by a Dirichlet law per label; one's own files are one client each.
Features are scaled by constants that are public (written here, or given as bounds), never by fitted ones:
a mean or a maximum of private rows would leave without a price.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .datafiles import DataError as DataError
from .datafiles import Table, label_text, read_mnist, read_table
from .tables import Data

__all__ = ["ClientData", "DataError", "Federated", "deal", "load"]

Split: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]


@dataclass(frozen=True, repr=False)
class ClientData:
    """One client's rows. Its repr shows how many there are and nothing of what they say.

    Attributes:
        id: The client's name: ``clinic-0`` …, or the stem of its file.
        x: Features, float32, shape ``(rows, *input_shape)``.
        y: Labels as positions in `Federated.labels`, int64, shape ``(rows,)``.
    """

    id: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        return f"ClientData({self.id!r}, {len(self)} rows)"


@dataclass(frozen=True)
class Federated:
    """The rows of a run.

    Attributes:
        clients: One entry a client, in the order of their ids' numbers or files.
        test: Public rows to measure accuracy on, or None.
        classes: Number of labels.
        labels: The labels as text.
        input_shape: Shape of one row.
        built_in: Whether every row is public, so that the run may be compared with one without privacy.
        description: For people: ``digits (1,437 rows, Dirichlet α=1)``.
    """

    clients: list[ClientData]
    test: Split | None
    classes: int
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    built_in: bool
    description: str

    def __repr__(self) -> str:
        """Sizes only."""
        return f"Federated({self.description}, {len(self.clients)} clients, {self.classes} classes)"


def load(data: Data, seed: int, *, private: bool = True) -> Federated:
    """The rows that a ``[data]`` table names.

    Guarantees:
        - The same table and seed give the same rows to the same clients.
        - Every feature is finite; the built-in sets and bounded features lie in [-1, 1].
        - No error message shows a value of a row.

    Args:
        data: The table.
        seed: Deals the rows of built-in sets.
        private: Whether DP is on: then what would be inferred from rows (labels, ranges) must be given.

    Returns:
        Clients, public test rows, and their shape.

    Raises:
        DataError: With the file, row and column, and what to do; caused by an OSError if unreadable.
    """
    if isinstance(data.clients, tuple):
        return _load_own(data, [Path(name) for name in data.clients], private)
    loader = {"digits": _digits, "breast_cancer": _breast_cancer, "mnist": _mnist}[data.name]
    train, test, labels = loader(data)
    parts = deal(train[1], data.clients, data.alpha, seed, min_rows=data.min_rows)
    clients = [
        ClientData(f"clinic-{number}", train[0][rows], train[1][rows]) for number, rows in enumerate(parts)
    ]
    how = f"Dirichlet α={data.alpha:g}"
    return Federated(
        clients=clients,
        test=test,
        classes=len(labels),
        labels=labels,
        input_shape=train[0].shape[1:],
        # MNIST is public too, but the files are whatever lies at the path.
        built_in=data.name != "mnist",
        description=f"{data.name} ({len(train[1]):,} rows, {how})",
    )


def deal(
    y: NDArray[np.int64], num_clients: int, alpha: float, seed: int, *, min_rows: int = 1
) -> list[NDArray[np.int64]]:
    """Deal rows to clients, each label by its own Dirichlet shares (Hsu et al. 2019).

    Guarantees:
        - Every row goes to exactly one client, and each client gets at least `min_rows`.
        - The same arguments give the same deal.

    Args:
        y: Labels, shape ``(rows,)``.
        num_clients: Number of clients, at least 1.
        alpha: Concentration, > 0: small values give each client few labels, large ones an even mix.
        seed: Starts the generator.
        min_rows: Fewest rows of a client; the richest clients make up what the shares leave short.

    Returns:
        Sorted row numbers for each client.

    Raises:
        DataError: If there are not enough rows.

    Example:
        >>> sorted(np.concatenate(deal(np.zeros(6, np.int64), 2, 1.0, seed=0)).tolist())
        [0, 1, 2, 3, 4, 5]

    References:
        Hsu, Qi, Brown (2019), https://arxiv.org/abs/1909.06335.
    """
    if num_clients * min_rows > len(y):
        raise DataError(
            f"Expected at least data.min_rows = {min_rows} rows for each of {num_clients} clients, got "
            f"{len(y)} rows in all. Lower data.clients or data.min_rows."
        )
    # Nothing private rests on this generator: the sets that are dealt are public.
    rng = np.random.Generator(np.random.PCG64(seed))
    parts: list[list[int]] = [[] for _ in range(num_clients)]
    for label in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == label))
        shares = rng.dirichlet(np.full(num_clients, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
        for part, chunk in zip(parts, np.split(rows, cuts), strict=True):
            part.extend(chunk.tolist())
    for part in parts:
        while len(part) < min_rows:
            richest = max(parts, key=len)
            part.append(richest.pop(int(rng.integers(len(richest)))))
    return [np.array(sorted(part), dtype=np.int64) for part in parts]


# --- built-in sets ----------------------------------------------------------------------------------------


def _sklearn() -> Any:
    try:
        return importlib.import_module("sklearn.datasets")
    except ImportError as error:
        raise ImportError(
            "Expected scikit-learn, which the built-in data sets ship with, got none. "
            "Install it with: pip install 'privopt[run]'."
        ) from error


def _held_out(x: NDArray[np.float64], y: NDArray[Any]) -> tuple[Split, Split]:
    """Every fifth row of each label is for the test: stratified, and the same on every machine."""
    order = np.argsort(y, kind="stable")
    test = np.zeros(len(y), dtype=bool)
    test[order[::5]] = True
    features, labels = x.astype(np.float32), y.astype(np.int64)
    return (features[~test], labels[~test]), (features[test], labels[test])


def _digits(data: Data) -> tuple[Split, Split, tuple[str, ...]]:
    bunch = _sklearn().load_digits()
    # Pixels count 0 to 16.
    train, test = _held_out(bunch.images[:, None] / 16.0, bunch.target)
    return train, test, tuple(str(digit) for digit in range(10))


def _breast_cancer(data: Data) -> tuple[Split, Split, tuple[str, ...]]:
    bunch = _sklearn().load_breast_cancer()
    low, high = np.array(_WDBC_RANGES).T
    train, test = _held_out(_scaled(bunch.data, low, high), bunch.target)
    return train, test, ("malignant", "benign")


# Ranges that the set's public description states, rounded outwards: mean, standard error and worst of radius,
# texture, perimeter, area, smoothness, compactness, concavity, concave points, symmetry, fractal dimension.
_WDBC_RANGES = [
    *[(5, 30), (5, 40), (40, 190), (100, 2600), (0, 0.2)],
    *[(0, 0.4), (0, 0.5), (0, 0.25), (0.1, 0.35), (0, 0.1)],
    *[(0, 3), (0, 5), (0, 25), (0, 550), (0, 0.04)],
    *[(0, 0.15), (0, 0.4), (0, 0.06), (0, 0.1), (0, 0.04)],
    *[(5, 40), (10, 50), (50, 260), (150, 4300), (0, 0.25)],
    *[(0, 1.1), (0, 1.3), (0, 0.3), (0.1, 0.7), (0, 0.25)],
]


def _mnist(data: Data) -> tuple[Split, Split, tuple[str, ...]]:
    images, labels, test_images, test_labels = read_mnist(Path(data.path or "."))
    train, test = (
        ((x[:, None] / np.float32(255)).astype(np.float32), y.astype(np.int64))
        for x, y in ((images, labels), (test_images, test_labels))
    )
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"Expected train and test images of one size in {data.path}, got two sizes.")
    return train, test, tuple(str(digit) for digit in range(10))


# --- one's own files --------------------------------------------------------------------------------------


def _load_own(data: Data, paths: list[Path], private: bool) -> Federated:
    ids = [path.stem for path in paths]
    for name in ids:
        if ids.count(name) > 1:
            raise DataError(
                f"Expected one file name a client, got {name!r} {ids.count(name)} times in data.clients: "
                "it is the client's id. Rename the files."
            )
        if not re.fullmatch(r"\w[\w.-]{0,63}", name):
            raise DataError(
                f"Expected a file name of letters, digits, '.', '_' and '-' (at most 64), got {name!r} in "
                "data.clients: it is the client's id. Rename the file."
            )
    tables = [read_table(path, data.target) for path in paths]
    test = read_table(Path(data.test), data.target) if data.test is not None else None
    everyone = tables if test is None else [*tables, test]
    _check_alike(everyone)
    labels = _labels(data, everyone, private)
    low, high = _bounds(data, tables[0], private)

    def numbered(table: Table) -> Split:
        order = [table.columns.index(name) for name in tables[0].columns]
        x = _scaled(table.x[:, order] if order else table.x, low, high)
        return x.astype(np.float32), _positions(table, labels)

    clients = [ClientData(name, *numbered(table)) for name, table in zip(ids, tables, strict=True)]
    rows = sum(map(len, clients))
    return Federated(
        clients=clients,
        test=None if test is None else numbered(test),
        classes=len(labels),
        labels=labels,
        input_shape=clients[0].x.shape[1:],
        built_in=False,
        # Row counts are the clients' own affair: they show only where no privacy was asked for.
        description=f"{len(paths)} files" if private else f"{len(paths)} files ({rows:,} rows)",
    )


def _check_alike(tables: list[Table]) -> None:
    first = tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(first.columns):
            missing = sorted(set(first.columns) - set(table.columns))
            extra = sorted(set(table.columns) - set(first.columns))
            raise DataError(
                f"Expected the columns of {first.path} in every file, got {table.path} "
                + " and ".join(
                    [f"without {', '.join(missing)}"] * bool(missing)
                    + [f"with {', '.join(extra)}"] * bool(extra)
                )
                + ". Its own columns are "
                + (", ".join(table.columns) or "unnamed (an archive)")
                + "; add or drop what differs."
            )
        if table.x.shape[1:] != first.x.shape[1:]:
            raise DataError(
                f"Expected rows of shape {first.x.shape[1:]} as in {first.path}, got {table.x.shape[1:]} in "
                f"{table.path}. Every client's rows must have one shape."
            )


def _labels(data: Data, tables: list[Table], private: bool) -> tuple[str, ...]:
    if data.classes is not None:
        return tuple(label_text(label) for label in data.classes)
    if private:
        raise DataError(
            "Expected data.classes, the list of all labels, with dp on, got none: which labels occur is "
            'private. Write classes = ["no", "yes"].'
        )
    found = {label for table in tables for label in table.labels}
    if len(found) < 2:
        raise DataError(
            f"Expected at least two labels in {len(tables)} files, got {len(found)}. Is data.target "
            "the label's column?"
        )
    return tuple(
        sorted(found, key=lambda label: (not label.isdigit(), int(label) if label.isdigit() else 0, label))
    )


def _positions(table: Table, labels: tuple[str, ...]) -> NDArray[np.int64]:
    position = {label: number for number, label in enumerate(labels)}
    for row, label in enumerate(table.labels):
        if label not in position:
            raise DataError(
                f"Expected one of the {len(labels)} labels ({', '.join(labels)}) of data.classes, got "
                f"another in {table.place(row)}. Add it to data.classes, or drop the row."
            )
    return np.array([position[label] for label in table.labels], dtype=np.int64)


def _bounds(data: Data, table: Table, private: bool) -> tuple[Any, Any]:
    """Public bounds of every feature, None where there are none and none are needed."""
    unknown = sorted(set(data.bounds) - set(table.columns) - {"*"})
    if unknown:
        have = ", ".join(table.columns) or 'unnamed features, for which "*" stands'
        raise DataError(
            f"Expected features in data.bounds, got {', '.join(unknown)}. {table.path} has {have}."
        )
    rest = data.bounds.get("*")
    unbounded = [name for name in table.columns or ("x",) if name not in data.bounds and rest is None]
    if unbounded and private:
        raise DataError(
            f"Expected public bounds of every feature with dp on, got none for {', '.join(unbounded[:5])}"
            f"{' …' if len(unbounded) > 5 else ''}. Write what is publicly known, for instance "
            'bounds = {age = [0, 110], "*" = [-1, 1]}; a range taken from the rows would leak.'
        )
    # Without bounds a feature stays as it is: the map of [-1, 1] to [-1, 1].
    pairs = [data.bounds.get(name, rest or (-1.0, 1.0)) for name in table.columns or ("*",)]
    open_ended = [name in unbounded for name in table.columns or ("x",)]
    low = np.array([-np.inf if free else pair[0] for free, pair in zip(open_ended, pairs, strict=True)])
    high = np.array([np.inf if free else pair[1] for free, pair in zip(open_ended, pairs, strict=True)])
    return low, high


def _scaled(x: NDArray[np.float64], low: NDArray[Any], high: NDArray[Any]) -> NDArray[np.float64]:
    """Clip to [low, high] and map to [-1, 1]; a feature with infinite bounds stays as it is."""
    bounded = np.isfinite(low)
    width = np.where(bounded, high - low, 2.0)
    start = np.where(bounded, low, -1.0)
    scaled: NDArray[np.float64] = (np.clip(x, low, high) - start) * (2.0 / width) - 1.0
    return scaled
