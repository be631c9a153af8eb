"""The work on shards in this process: images through the network, rows into files."""

from sklearn_cnnfeat._extract.shard_sink import ShardSink, WriteError
from sklearn_cnnfeat._extract.workspace import explain
from sklearn_cnnfeat.exceptions import EngineError


def compute_shards(shards, extractor, images, stamps, positions, first=0, steps=None):
    """Compute some images, and close the shards that are complete with them.

    Returned is how many were computed.

    The same images always give the same files, so several processes may do this at the same time,
    also on another machine that sees the folder.

    `images` are all of them, or those of a shard whose first has the position `first`. Of these,
    `positions` are to be computed: all of each shard that is not closed, and of closed ones some.
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
