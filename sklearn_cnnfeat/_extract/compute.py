"""The work on shards: here, or one shard per task on the worker of a cluster."""

import errno
import json
import os
import socket

from sklearn_cnnfeat._extract.manifest import differences
from sklearn_cnnfeat._extract.shard_sink import PartSink, WriteError
from sklearn_cnnfeat._images import first_few
from sklearn_cnnfeat.exceptions import EngineError

# In the working folder.
MANIFEST = "manifest.json"


def compute_parts(parts, extractor, images, stamps, positions, first=0, steps=None):
    """Compute some images and close the parts that are complete with them.

    Whoever does this for the same images writes the same files: it may be done twice, at the same
    time, or by a process on another machine that sees the folder.

    Parameters
    ----------
    parts : Parts
        Where they go.
    extractor : Extractor
        What computes rows.
    images : Images
        All of them, or those of a part.
    stamps : ndarray of shape (n_images, STAMP), uint8
        What they are like.
    positions : list of int
        Those of `images` that are to be computed: all of each part that is not closed, and of
        closed ones some.
    first : int, default=0
        Position of the first of `images` among all of the job.
    steps : object with ``wrap(sink)``, default=None
        What rows go through before they are kept.

    Returns
    -------
    n_computed : int
        Number of images that went through the network.
    """
    columns = None if extractor.gives_maps or steps is not None else extractor.columns
    try:
        with PartSink(parts, columns, stamps, positions, first) as sink:
            wrapped = sink if steps is None else steps.wrap(sink)
            return extractor.run(images, wrapped, positions, "extract")
    except WriteError as error:
        raise explain(error.__cause__, parts.folder) from error
    except EngineError as error:
        # `transform` would go on with Keras, whose numbers differ from those of earlier parts.
        raise EngineError(f"{error} Pass engine='keras' to compute it with Keras.") from error


def compute_part_on_worker(common, images, stamps, positions, first):
    """Compute some images of one part and close it, on a machine that may not be the caller's.

    Parameters
    ----------
    common : tuple
        Parts, extractor, steps behind it or None, and the recipe that its rows must have.
    images, stamps, positions, first
        As for `compute_parts`.

    Returns
    -------
    n_computed, n_done : int
        Number of images that went through the network, and of `positions`.
    """
    parts, extractor, steps, recipe = common
    where = f"the worker on {socket.gethostname()} (process {os.getpid()})"
    if not (parts.folder / MANIFEST).is_file():
        raise FileNotFoundError(
            f"{where} does not see the folder {str(parts.folder)!r}. With client=, the output must "
            "lie where all workers find it under the same name, on a network file system, say."
        )
    here = [json.loads(text) for text in extractor.fingerprints]
    if here != recipe:
        then, now = ({"n_images": 0, "recipe": value} for value in (recipe, here))
        changes = "; ".join(differences(then, now))
        raise RuntimeError(
            f"{where} would compute other features than this run is about: {changes}. Install the "
            "same versions everywhere."
        )
    # Of what was there a moment ago, nothing is: as errors of images that would be misleading.
    known = [images.name(i) for i in positions if stamps[i].any()]
    if known and not any(map(os.path.exists, known)):
        raise FileNotFoundError(
            f"{where} does not see the images: of {len(known)} not one is there: "
            f"{first_few(known)}. With client=, all workers must find them under the same names."
        )
    return compute_parts(parts, extractor, images, stamps, positions, first, steps), len(positions)


def explain(error, folder):
    """Return an `OSError` that says what to do about one that came while writing to a folder."""
    may_not = "Choose a folder that you may write to"
    remedies = {
        "ENOSPC": "Make space on the disk",
        "EDQUOT": "Make space within your quota",
        "EFBIG": "Raise the limit on the size of files (ulimit -f)",
        "EACCES": may_not,
        "EPERM": may_not,
        "EROFS": may_not,
    }
    remedy = remedies.get(errno.errorcode.get(error.errno), "Mend this")
    return OSError(
        error.errno,
        f"cannot write to {str(folder)!r}: {error.strerror or error}. Nothing is lost of what is "
        f"complete there. {remedy}, and the same call goes on where it was",
    )
