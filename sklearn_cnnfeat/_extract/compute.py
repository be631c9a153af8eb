"""The work on shards in this process: images through the network, rows into files."""

from sklearn_cnnfeat._extract.shard_sink import ShardSink, WriteError
from sklearn_cnnfeat._extract.workspace import explain
from sklearn_cnnfeat.exceptions import EngineError


def compute_shards(shards, extractor, images, stamps, positions, first=0, steps=None):
    """Compute some images and close the shards that are complete with them.

    The same images always give the same files, so several processes may do this at the same time,
    also on another machine that sees the folder.

    Parameters
    ----------
    shards : Shards
        Where they go.
    extractor : Extractor
        What computes rows.
    images : Images
        All of them, or those of a shard.
    stamps : ndarray of shape (n_images, STAMP), uint8
        What they are like.
    positions : list of int
        Those of `images` that are to be computed: all of each shard that is not closed, and of
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
        with ShardSink(shards, columns, stamps, positions, first) as sink:
            wrapped = sink if steps is None else steps.wrap(sink)
            return extractor.run(images, wrapped, positions, "extract")
    except WriteError as error:
        raise explain(error.__cause__, shards.folder) from error
    except EngineError as error:
        # No fallback to Keras as in `transform`: its numbers differ from those of earlier shards.
        raise EngineError(f"{error} Pass engine='keras' to compute it with Keras.") from error
