"""What a shell gets: sentences on the error stream, and results as tables, CSV or JSON."""

import json
import sys

import click

from sklearn_cnnfeat._csv import csv_writer

PROGRAM = "cnnfeat"


def say(sentence):
    """Print a sentence for people on the error stream, above a progress bar if there is one."""
    line = f"{PROGRAM}: {sentence}"
    if "tqdm" in sys.modules and sys.stderr is not None:
        sys.modules["tqdm"].tqdm.write(line, file=sys.stderr)
    else:
        click.echo(line, err=True)


def results():
    """Return the stream that results go to; None if there is none."""
    return click.get_current_context().obj.output


def is_terminal():
    """Whether a person reads the results as they come."""
    return results() is not None and results().isatty()


def show(text):
    """Print a line of results."""
    if results() is not None:
        click.echo(text, file=results())


def show_table(rows, style=None):
    """Print rows, dictionaries with the same keys."""
    rows = list(rows)
    style = style or ("text" if is_terminal() else "csv")
    if style == "json":
        show(json.dumps(rows, indent=1, default=str, ensure_ascii=False))
    elif style == "csv":
        writer = csv_writer(show)
        writer.writerow(rows[0] if rows else [])
        for row in rows:
            writer.writerow([_plain(value) for value in row.values()])
    elif rows:
        columns = [[name, *_readable([row[name] for row in rows])] for name in rows[0]]
        is_number = [all(_is_number(row[name]) for row in rows) for name in rows[0]]
        widths = [max(map(len, column)) for column in columns]
        for cells in zip(*columns, strict=True):
            aligned = (
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(cells, widths, is_number, strict=True)
            )
            show("  ".join(aligned).rstrip())


def show_record(record, style=None):
    """Print one dictionary, in a terminal with a line for each value."""
    if style is None and is_terminal():
        width = max(map(len, record))
        for name, value in record.items():
            show(f"{name:{width}}  {_readable([value])[0]}")
    else:
        show_table([record], style)


def _is_number(value):
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


def _plain(value):
    if isinstance(value, (list, tuple)):
        return "x".join("?" if one is None else str(one) for one in value)
    return "" if value is None else value


def _readable(values):
    """Return the values of a column as text for people."""
    floats = [value for value in values if isinstance(value, float)]
    if all(float(f"{value:g}") == value for value in floats):
        form = "g"  # what was typed, such as 0.1 and 10
    elif any(0 < abs(value) < 1e-3 for value in floats):
        form = ".3g"
    else:
        form = ".3f"
    texts = []
    for value in values:
        if isinstance(value, float):
            texts.append(f"{value:{form}}")
        elif isinstance(value, (list, tuple)):
            texts.append(" x ".join("?" if one is None else str(one) for one in value))
        else:
            texts.append("" if value is None else str(value))
    return texts
