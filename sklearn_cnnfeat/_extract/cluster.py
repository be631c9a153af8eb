"""The work on shards on a cluster, one shard per task."""

import json
import os
import socket
from dataclasses import replace

import numpy as np

from sklearn_cnnfeat import _dask
from sklearn_cnnfeat._extract.compute import compute_shards
from sklearn_cnnfeat._extract.manifest import differences
from sklearn_cnnfeat._extract.workspace import MANIFEST
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat._progress import progress


def compute_on_cluster(client, shards, extractor, records, recipe, positions, steps=None):
    """Do as `compute_shards` on a cluster, whose workers must see the folder and the files.

    `recipe` is the fingerprint that rows must have, head by head; `positions` are sorted.
    """
    _dask.check_workers(client, compute_shard_on_worker)
    quiet = replace(extractor, verbose=0)
    _dask.check_size(quiet)
    common = shards, quiet, steps, recipe
    numbers, starts = np.unique(positions // shards.part_size, return_index=True)

    def jobs():
        groups = np.split(positions, starts[1:])
        for number, group in zip(numbers.tolist(), groups, strict=True):
            span = shards.span(number)
            images = records.images.absolute_part(span)
            yield images, records.stamps(span), (group - span.start).tolist(), span.start

    n_computed = 0
    n_known = len(records) - len(positions)
    with progress(len(records), "extract", extractor.verbose, n_known) as bar:
        tasks = _dask.run_tasks(client, compute_shard_on_worker, common, jobs())
        for n_of_shard, n_done in tasks:
            n_computed += n_of_shard
            bar.update(n_done)
    return n_computed


def check_images(images):
    """Raise where workers cannot read the images by themselves."""
    if not images.has_paths:
        raise ValueError(
            "With client=, workers read the images themselves: X must hold paths or URLs. "
            "Write the images to files first, or extract without client=."
        )


def compute_shard_on_worker(common, images, stamps, positions, first):
    """Compute some images of one shard and close it, on a machine that may not be the caller's.

    `common` holds shards, extractor, steps or None, and the recipe that rows must have. Returned is
    how many images went through the network, and how many of `positions` are done.
    """
    shards, extractor, steps, recipe = common
    where = f"the worker on {socket.gethostname()} (process {os.getpid()})"
    if not (shards.folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{where} does not see the folder {str(shards.folder)!r}. With client=, the output "
            "must lie where all workers find it under the same name, on a network file system, say."
        )
    here = [json.loads(text) for text in extractor.fingerprints]
    if here != recipe:
        then, now = ({"n_images": 0, "recipe": value} for value in (recipe, here))
        changes = "; ".join(differences(then, now))
        raise RuntimeError(
            f"{where} would compute other features than this run is about: {changes}. Install the "
            "same versions everywhere."
        )
    # Raised at once: reporting it as errors of single images would be misleading.
    known = [images.name(i) for i in positions if stamps[i].any()]
    if known and not any(map(os.path.exists, known)):
        raise FileNotFoundError(
            f"{where} does not see the images: of {len(known)} not one is there: "
            f"{first_few(known)}. With client=, all workers must find them under the same names."
        )
    n_computed = compute_shards(shards, extractor, images, stamps, positions, first, steps)
    return n_computed, len(positions)
