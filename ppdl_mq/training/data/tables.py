"""Data plug-ins for tables: CSV and Parquet.

Columns, categories and label mapping are explicit, so that all peers agree on what input 7 means. Messages name rows
and columns, never what stands in them.
"""

from __future__ import annotations

import csv as csv_module
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppdl_mq.errors import DataError
from ppdl_mq.training.data.samples import Samples

Column = str | int
Row = tuple[int, list[str]]  # its number for messages, counted from 1, and its cells


_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which columns are used, and how.

    Args:
        label: column of the target.
        features: columns of the inputs, in this order; None for all others.
        drop: columns left out where features is None.
        missing: cells that stand for a missing value.
        drop_missing: whether rows with a missing value in a used column are left out.
        labels: class number of each label; None where the column holds numbers.
        categories: for one-hot columns, their values in order.
        where: keep only rows with these cells.
    """

    label: Column
    features: Sequence[Column] | None = None
    drop: Sequence[Column] = ()
    missing: Sequence[str] = ("", "?")
    drop_missing: bool = False
    labels: Mapping[str, int] | None = None
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict)
    where: Mapping[str, str] = field(default_factory=dict)


def csv(
    path: str,
    *,
    label: Column,
    features: Sequence[Column] | None = None,
    drop: Sequence[Column] = (),
    header: bool = True,
    delimiter: str = ",",
    missing: Sequence[str] = ("", "?"),
    drop_missing: bool = False,
    labels: Mapping[str, int] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    where: Mapping[str, str] | None = None,
    encoding: str = "utf-8-sig",
) -> Samples:
    """Read a text table.

    Args:
        path: the file.
        label: column of the target, by name or number (from 0; -1 is the last).
        features: columns of the inputs, in this order; all others without it.
        drop: columns to leave out where features is not given.
        header: whether the first line holds names; without it, columns are named by their numbers.
        delimiter: one character.
        missing: cells that stand for a missing value.
        drop_missing: whether to leave out rows with a missing value in a used column.
        labels: class number of each label; without it the column holds numbers.
        categories: {column: [value, ...]} for columns that become one-hot, in this order.
        where: {column: cell}: only rows that hold it.
        encoding: of the file; the default is UTF-8 with or without a byte-order mark.

    Returns:
        inputs float32 (rows, features); targets int64 or float64 (rows).
    """
    choice = Choice(
        label=label,
        features=features,
        drop=drop,
        missing=missing,
        drop_missing=drop_missing,
        labels=labels,
        categories=categories or {},
        where=where or {},
    )
    try:
        with Path(path).open(newline="", encoding=encoding) as file:
            reader = csv_module.reader(file, delimiter=delimiter, strict=True)
            names = [cell.strip() for cell in next(reader, [])] if header else None
            rows = ((reader.line_num, [cell.strip() for cell in cells]) for cells in reader if cells)
            return _samples(names, rows, choice)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text.", hint="Set encoding in the data arguments.") from error
    except csv_module.Error as error:
        raise DataError(f"{path} is not a proper CSV file.", hint="Check delimiter and quotes.") from error


def parquet(
    path: str,
    *,
    label: Column,
    features: Sequence[Column] | None = None,
    drop: Sequence[Column] = (),
    missing: Sequence[str] = ("",),
    drop_missing: bool = False,
    labels: Mapping[str, int] | None = None,
    categories: Mapping[str, Sequence[str]] | None = None,
    where: Mapping[str, str] | None = None,
) -> Samples:
    """Read a Parquet table; the arguments are those of `csv`. A null is a missing value.

    Returns:
        inputs float32 (rows, features); targets int64 or float64 (rows).
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as arrow_parquet
    except ImportError as error:
        raise DataError(
            "Parquet needs pyarrow, which is not installed.", hint="pip install 'ppdl-mq[parquet]'"
        ) from error
    choice = Choice(
        label=label,
        features=features,
        drop=drop,
        missing=missing,
        drop_missing=drop_missing,
        labels=labels,
        categories=categories or {},
        where=where or {},
    )
    try:
        with arrow_parquet.ParquetFile(path) as file:
            rows = _arrow_rows(file.iter_batches())
            return _samples(list(file.schema_arrow.names), rows, choice)
    except arrow.ArrowInvalid as error:
        raise DataError(f"{path} is not a Parquet file.", hint="Check the path.") from error


def _arrow_rows(batches: Iterable[Any]) -> Iterator[Row]:
    number = 0
    for batch in batches:
        for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            number += 1
            yield number, [_text(cell) for cell in cells]


def _text(cell: object) -> str:
    """Return a typed cell as it would stand in a CSV file; repr keeps every bit of a float."""
    if cell is None:
        return ""
    return str(int(cell)) if isinstance(cell, bool) else str(cell)


def _samples(names: list[str] | None, rows: Iterator[Row], choice: Choice) -> Samples:
    """Turn rows of text into numbers."""
    first = next(rows, None)
    if first is None:
        raise DataError("The table has no rows.", hint="Check the path, and whether it has a header line.")
    columns = names if names is not None else [str(number) for number in range(len(first[1]))]
    label = _index(choice.label, columns)
    where = {_index(name, columns): cell for name, cell in choice.where.items()}
    features = _features(choice, columns, unused={label, *where})
    categories = {_index(name, columns): list(values) for name, values in choice.categories.items()}
    missing = set(choice.missing)

    inputs: list[list[float]] = []
    targets: list[float] = []
    for number, cells in _chain(first, rows):
        if len(cells) != len(columns):
            raise DataError(
                f"Row {number} has {len(cells)} columns instead of {len(columns)}.", hint="Check the delimiter."
            )
        if any(cells[index] != cell for index, cell in where.items()):
            continue
        gap = next((index for index in (*features, label) if cells[index] in missing), None)
        if gap is not None:
            if choice.drop_missing:
                continue
            raise DataError(
                f"Row {number} has no value in the column {columns[gap]}.",
                hint="Set drop_missing = true to leave such rows out, or leave out the column with `drop`.",
            )
        values: list[float] = []
        for index in features:
            if index in categories:
                values.extend(_one_hot(cells[index], categories[index], number, columns[index]))
            else:
                values.append(_number(cells[index], number, columns[index]))
        inputs.append(values)
        targets.append(_label(cells[label], choice.labels, number, columns[label]))
    if not inputs:
        raise DataError("No row of the table is left.", hint="Check `where`, and what drop_missing leaves out.")
    return Samples(
        torch.from_numpy(np.array(inputs, dtype=np.float32)),
        torch.tensor(targets, dtype=torch.float64 if choice.labels is None else torch.int64),
    )


def _chain(first: Row, rest: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from rest


def _features(choice: Choice, columns: list[str], unused: set[int]) -> list[int]:
    if choice.features is not None:
        return [_index(name, columns) for name in choice.features]
    dropped = unused | {_index(name, columns) for name in choice.drop}
    return [index for index in range(len(columns)) if index not in dropped]


def _index(column: Column, columns: list[str]) -> int:
    if isinstance(column, int) and -len(columns) <= column < len(columns):
        return column % len(columns)
    if isinstance(column, str) and columns.count(column) == 1:
        return columns.index(column)
    raise DataError(f"The table has no one column {column!r}.", hint=f"Its columns are {', '.join(columns)}.")


def _number(cell: str, row: int, column: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise DataError(
            f"Row {row} has no number in the column {column}.",
            hint="List its values in `categories`, add its marker to `missing`, or leave it out with `drop`.",
        ) from None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise DataError(f"Row {row} is NaN or infinite in the column {column}.", hint="Correct it or leave it out.")
    return value


def _one_hot(cell: str, values: list[str], row: int, column: str) -> list[float]:
    if cell not in values:
        raise DataError(
            f"Row {row} has an unknown value in the column {column}.",
            hint="Agree on `categories` that hold every value of every peer.",
        )
    return [float(cell == value) for value in values]


def _label(cell: str, labels: Mapping[str, int] | None, row: int, column: str) -> float:
    if labels is None:
        try:
            return _number(cell, row, column)
        except DataError as error:
            raise DataError(
                f"Row {row} has no number in the label column {column}.", hint="Map its values with `labels`."
            ) from error
    if cell not in labels:
        raise DataError(f"Row {row} has an unknown label in the column {column}.", hint="Add it to `labels`.")
    return labels[cell]
