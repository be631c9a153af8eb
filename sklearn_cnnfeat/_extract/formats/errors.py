"""The table of failed images beside a file of features."""

import csv

from sklearn_cnnfeat._csv import csv_writer
from sklearn_cnnfeat._files import sync

_FAILED = ("position", "path", "label", "error")


def write_errors(file, failed):
    """Write the table of failed images: rows of (position, path, label, error)."""
    with open(file, "w", encoding="utf-8", newline="") as table:
        writer = csv_writer(lambda line: table.write(line + "\n"))
        writer.writerow(_FAILED)
        writer.writerows(failed)
    sync(file)


def is_of_errors(file):
    """Return whether `write_errors` wrote a file."""
    try:
        with open(file, "rb") as table:
            return table.readline(100) == (",".join(_FAILED) + "\n").encode()
    except OSError:
        return False


def read_errors(file):
    """Return what `write_errors` wrote."""
    try:
        with open(file, encoding="utf-8", newline="") as table:
            rows = list(csv.reader(table))[1:]
        return [(int(position), path, label, error) for position, path, label, error in rows]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}).") from error
