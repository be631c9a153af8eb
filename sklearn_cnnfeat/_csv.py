"""CSV whose values may hold any character, as names of files do."""

import csv


def csv_writer(write_line):
    """Return a `csv.writer` that hands each row to a function, as a line without its end."""

    class Lines:
        write = staticmethod(lambda line: write_line(line.removesuffix("\r\n")))

    # Before Python 3.13 a value with a carriage return is only quoted where lines end with one, and
    # readers would take it for the end of a line.
    return csv.writer(Lines, lineterminator="\r\n")
