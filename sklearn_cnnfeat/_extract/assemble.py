"""Assemble shards into blocks for a file, and split a finished file into shards."""

import bisect

import numpy as np

from sklearn_cnnfeat._extract.formats.base import Block, block_rows
from sklearn_cnnfeat._extract.manifest import errors_of
from sklearn_cnnfeat._extract.shards import Shard


def blocks(shards, records, errors, n_rows, skips):
    """Yield the rows of all shards in blocks; each block reuses the memory of the one before.

    All shards are closed; unreadable images, whose `errors` are known by position, may be left out
    (`skips`).
    """
    n_block = min(block_rows(shards.row_shape, shards.dtype), max(1, n_rows))
    block = np.empty((n_block, *shards.row_shape), shards.dtype)
    start, positions = 0, []
    for number in range(len(shards)):
        span, rows = shards.span(number), shards.read(number).rows
        kept = np.asarray(span)
        if skips:
            kept = np.array([position for position in span if position not in errors], int)
            rows = rows[kept - span.start]
        while len(rows):
            n_taken = min(n_block - len(positions), len(rows))
            block[len(positions) : len(positions) + n_taken] = rows[:n_taken]
            positions += kept[:n_taken].tolist()
            rows, kept = rows[n_taken:], kept[n_taken:]
            if len(positions) == n_block:
                yield Block(start, block, records.columns(positions, errors))
                start, positions = start + n_block, []
    if positions:
        yield Block(start, block[: len(positions)], records.columns(positions, errors))


def take_apart(shards, records, rows, found):
    """Write the shards that are not closed from the `rows` of a finished file.

    Its manifest is `found`.
    """
    errors = errors_of(found)
    failed = sorted(errors) if found["on_error"] == "skip" else []
    for number in range(len(shards)):
        if shards.peek(number) is not None:
            continue
        span = shards.span(number)
        known = {position: errors[position] for position in span if position in errors}
        shard = Shard(
            np.full((len(span), *shards.row_shape), np.nan, shards.dtype),
            records.stamps(span),
            known,
        )
        start, stop = (
            position - bisect.bisect_left(failed, position) for position in (span.start, span.stop)
        )
        if failed:
            kept = [position - span.start for position in span if position not in errors]
            shard.rows[kept] = rows[start:stop]
        else:
            shard.rows[:] = rows[start:stop]
        shards.write(number, shard)
