"""One pass of photographs through a network: rows, and maps of layers, a few at a time."""

from dataclasses import replace

import numpy as np

from sklearn_cnnfeat._functions import apply_pooling
from sklearn_cnnfeat._inspection.maps import picture_size
from sklearn_cnnfeat._network.networks import forget_cut

# What is held at a time: bytes of rows and maps, and photographs.
_MOST_BYTES, _MOST_PHOTOS = 4e6, 64


def run_in_chunks(extractor, images, handle, positions=None, description="features"):
    """Compute images of one size, and hand their outputs on a few at a time.

    `handle` gets the positions of some readable images, and one array per head, maps as maps; it
    copies what it keeps.
    """
    sink = _ChunkSink(extractor.shapes, handle)
    # Maps would fill the cache.
    replace(extractor, cache=None).run(images, sink, positions, description)
    sink.flush()


class _ChunkSink:
    """Collects the rows of a few images in arrays that are used again."""

    def __init__(self, shapes, handle):
        n_bytes = 4 * sum(int(np.prod(shape)) for shape in shapes)
        size = int(np.clip(_MOST_BYTES // n_bytes, 1, _MOST_PHOTOS))
        self._heads = [np.empty((size, *shape), np.float32) for shape in shapes]
        self._positions = []
        self._handle = handle

    def write(self, i, rows):
        """Copy the rows of image `i`, and hand a full chunk on."""
        for head, row in zip(self._heads, rows, strict=True):
            head[len(self._positions)] = row
        self._positions.append(i)
        if len(self._positions) == len(self._heads[0]):
            self.flush()

    def fail(self, i, error):
        """Leave out an image that cannot be read."""

    def flush(self):
        """Hand on what there is."""
        n = len(self._positions)
        if n:
            self._handle(np.array(self._positions), [head[:n] for head in self._heads])
        self._positions = []


class RowsAndMaps:
    """Compute the rows of an extractor together with feature maps of any layers.

    Maps come from a second pass (`is_apart`), in float32 and at one size, where those of an 8-bit
    network would change its calibration, and those of a network that takes images of any size have
    no common shape. `layers` are those with maps, the extractor's own first.
    """

    def __init__(self, extractor, images, layers=()):
        self._extractor, self._images = extractor, images
        self.is_apart = extractor.precision == "int8" or extractor.input_size is None
        own, self._further = list(extractor.layers), []
        size = extractor.input_size or picture_size(extractor, images)
        # The engine stays, so that rows are those of `transform` to the last bit.
        joint = replace(extractor, asked_engine=extractor.engine, cache=None)
        if self.is_apart:
            joint = joint.with_(input_size=size, precision="float32")
        if len(layers):
            # By their paths: a layer may have been given by its index, or twice.
            self._further = joint.with_(layers=layers, poolings=[None] * len(layers)).layers
            own += [layer for layer in dict.fromkeys(self._further) if layer not in own]
        self.layers = own
        # A user-defined pooling takes the maps themselves.
        pooled = [] if self.is_apart or extractor.pooling is not None else self._own_heads()
        maps = [(layer, None) for layer in self.layers]
        heads = list(dict.fromkeys([*pooled, *maps]))
        self._rows, self._maps = ([heads.index(head) for head in part] for part in (pooled, maps))
        names, poolings = zip(*heads, strict=True)
        self._joint = joint.with_(layers=names, poolings=poolings)
        self.map_shapes = [self._joint.map_shapes[k] for k in self._maps]

    @property
    def further(self):
        """Places of the further layers in `layers`."""
        return [self.layers.index(layer) for layer in dict.fromkeys(self._further)]

    def _own_heads(self):
        return list(zip(self._extractor.layers, self._extractor.spec.poolings, strict=True))

    def run(self, handle, description):
        """Compute all images.

        `handle` gets the positions of some readable images, their rows (n, n_columns) and a list of
        maps, (n, *shape), one per layer; it copies what it keeps.
        """

        def split(positions, heads):
            maps = [heads[k] for k in self._maps]
            handle(positions, self._rows_of(heads, maps), maps)

        try:
            if self.is_apart:
                self._run_apart(handle, description)
            else:
                run_in_chunks(self._joint, self._images, split, description=description)
        finally:
            # Nothing else asks for just these outputs: their network would only take memory.
            forget_cut(self._joint.spec)

    def _rows_of(self, heads, maps):
        if self._extractor.pooling is None:
            rows = [heads[k] for k in self._rows]
        else:
            own = maps[: len(self._extractor.layers)]
            rows = [self._pooled(values) if values.ndim == 4 else values for values in own]
        return np.concatenate([part.reshape(len(part), -1) for part in rows], axis=1)

    def _pooled(self, maps):
        return np.stack([apply_pooling(self._extractor.pooling, one) for one in maps])

    def _run_apart(self, handle, description):
        def with_maps(positions, heads):
            rows = np.concatenate([head.reshape(len(head), -1) for head in heads], axis=1)
            place = {i: k for k, i in enumerate(positions)}

            def split(some, maps):
                handle(some, rows[[place[i] for i in some]], [maps[k] for k in self._maps])

            run_in_chunks(quiet, self._images, split, positions)

        quiet = replace(self._joint, verbose=0)
        run_in_chunks(self._extractor, self._images, with_maps, description=description)
