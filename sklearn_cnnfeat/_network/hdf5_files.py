"""Check that an HDF5 file of weights holds only arrays, each in the file itself, none too long."""

import math
import struct
import zlib

from sklearn_cnnfeat._network.refusals import (
    FREE_BYTES,
    LARGEST_RATIO,
    MOST_OBJECTS,
    Refused,
    show,
)


def inspect_hdf5(file, size):
    """Look at every object of an HDF5 file; return its attribute "model_config", if any."""
    import h5py

    budget = FREE_BYTES + LARGEST_RATIO * size
    n_bytes, n_texts = _count_texts(file, size)
    if n_bytes > budget:
        raise Refused(f"its texts, many of them the same one, are {n_bytes:,} bytes long")
    budget -= n_bytes
    with h5py.File(file, "r") as root:
        if root.id.get_create_plist().get_sizes() != (8, 8):
            # What `_check_heaps` goes by; others have not been written for decades.
            raise Refused("its HDF5 file has addresses of an unusual size")
        pending = [root["/"]]
        seen = set()
        n_objects = 0
        while pending:
            item = pending.pop()
            n_objects += 1
            if n_objects > MOST_OBJECTS:
                raise Refused(f"it holds more than {MOST_OBJECTS:,} groups and arrays")
            n_bytes, n_references = _check_attributes(item, budget)
            budget -= n_bytes
            n_texts -= n_references
            if isinstance(item, h5py.Dataset):
                budget -= _check_dataset(item, budget, size)
            elif not isinstance(item, h5py.Group):
                raise Refused(f"{item.name[:200]!r} in it is neither a group nor an array")
            else:
                address = h5py.h5o.get_info(item.id).addr
                if address in seen:
                    raise Refused(f"its group {item.name[:200]!r} is linked more than once")
                seen.add(address)
                for name in item:
                    # Looked at without following it.
                    if not isinstance(item.get(name, getlink=True), h5py.HardLink):
                        link = show(f"{item.name.rstrip('/')}/{name}", 200)
                        raise Refused(
                            f"its weights hold a link, {link}, which can lead to other files"
                        )
                    pending.append(item[name])
        if n_texts < 0:
            # The library takes up to 4 GB for a text that is not there before it misses it.
            raise ValueError("a text of the HDF5 file is not where or as long as it should be.")
        config = root.attrs.get("model_config")
    return config.encode() if isinstance(config, str) else config


_HEAP = b"GCOL\x01"


def _check_heaps(file, size):
    """Return address -> number -> length of the texts in the lists of texts of an HDF5 file.

    Raise if one is damaged: the library may read it for ever. Each of its entries has a length,
    and one of 0 leads the library to the same entry again.
    """
    heaps = {}
    before = b""
    end = n_texts = 0
    for start in range(0, size, 1 << 20):
        file.seek(start)
        block = before + file.read(1 << 20)
        found = block.find(_HEAP)
        while found >= 0:
            place = start - len(before) + found
            if place < end:
                raise Refused("its lists of texts lie inside each other")
            length, heaps[place] = _check_heap(file, place, size, MOST_OBJECTS - n_texts)
            end = place + length
            n_texts += len(heaps[place])
            found = block.find(_HEAP, found + 1)
        before = block[1 - len(_HEAP) :]
    file.seek(0)
    return heaps


def _check_heap(file, start, size, most):
    """Return the length of a list of texts, and those of its texts by their numbers."""
    file.seek(start)
    header = file.read(16)
    length = int.from_bytes(header[8:], "little")
    is_sound = len(header) == 16 and 16 <= length <= size - start
    heap = file.read(length - 16) if is_sound else b""
    lengths = {}
    n_entries = place = 0
    while is_sound and place + 16 <= len(heap):
        index, _, _, n_bytes = struct.unpack_from("<HHIQ", heap, place)
        # The entry 0 is what is left over; it counts its own head.
        step = 16 + (n_bytes + 7) // 8 * 8 if index else n_bytes
        is_sound = 16 <= step <= len(heap) - place
        place += step
        n_entries += 1
        if index:
            is_sound &= index not in lengths
            lengths[index] = n_bytes
        if n_entries > most:
            raise Refused(f"it holds more than {MOST_OBJECTS:,} texts")
    if not is_sound:
        raise ValueError("a list of texts in the HDF5 file is damaged.")
    return length, lengths


def _count_texts(file, size):
    """Return the length of all texts of an HDF5 file and their number.

    A text counts as often as something leads to it: any number of them can lead to the same one.
    """
    import numpy as np

    heaps = _check_heaps(file, size)
    if not heaps:
        return 0, 0
    addresses = np.array(list(heaps), np.uint64)
    n_bytes = n_texts = n_found = 0
    before = b""
    while block := file.read(1 << 20):
        block = before + block
        for shift in range(4, 12):
            # What leads to a text: its length, the address of the list and the number in it.
            view = np.frombuffer(block, "<u8", max(len(block) - 4 - shift, 0) // 8, shift)
            found = np.flatnonzero(view < size)
            found = found[np.isin(view[found], addresses)]
            n_found += len(found)
            if n_found > MOST_OBJECTS:
                raise Refused(f"it names its lists of texts more than {MOST_OBJECTS:,} times")
            for at in (8 * found + shift - 4).tolist():
                length, address, index = struct.unpack_from("<IQI", block, at)
                if heaps[address].get(index) == length:
                    n_bytes += length
                    n_texts += 1
        before = block[-15:]
    file.seek(0)
    return n_bytes, n_texts


def _check_dataset(dataset, budget, size):
    import h5py

    name = dataset.name[:200]
    created = dataset.id.get_create_plist()
    if created.get_external_count():
        raise Refused(f"its weights {name!r} lie in another file")
    if created.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED, h5py.h5d.COMPACT):
        raise Refused(f"its weights {name!r} are put together from other files")
    kind = dataset.id.get_type()
    _check_type(kind, name)
    if _is_reference(kind):
        # Those of an array can be packed, where `_count_texts` does not see them.
        raise Refused(f"its weights {name!r} are texts, which no layer of Keras has")
    n_bytes = kind.get_size() * math.prod(dataset.shape or (0,))
    _check_size(n_bytes, budget, name)
    if created.get_layout() == h5py.h5d.CHUNKED:
        _check_chunks(dataset, created, size)
    return n_bytes


def _check_chunks(dataset, created, size):
    """Raise if the pieces of an array unpack to more than the array has."""
    import h5py

    name = dataset.name[:200]
    known = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32)
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    for number in filters:
        if number not in known:
            raise Refused(f"its weights {name!r} need the HDF5 plug-in number {number}")
    if filters != sorted(set(filters), key=known.index):
        raise Refused(f"its weights {name!r} are compressed in an unusual way")
    shape = created.get_chunk()
    if any(its > whole for its, whole in zip(shape, dataset.shape, strict=True)):
        raise Refused(f"its weights {name!r} have pieces of {shape}, larger than the whole")
    n_bytes = math.prod(shape) * dataset.id.get_type().get_size()
    pieces = []
    dataset.id.chunk_iter(pieces.append)
    for piece in pieces:
        if piece.byte_offset + piece.size > size:
            raise ValueError("the HDF5 file is cut off.")
        if known[1] not in filters or piece.filter_mask & 1 << filters.index(known[1]):
            continue
        # The library would unpack it to the end, however much comes out.
        _, packed = dataset.id.read_direct_chunk(piece.chunk_offset)
        if len(zlib.decompressobj().decompress(packed, n_bytes + 1)) > n_bytes:
            raise Refused(f"a piece of its weights {name!r} unpacks to more than it is to have")


def _check_attributes(item, budget):
    """Return the size of all attributes of an object, and the number of texts that they lead to."""
    import h5py

    total = n_references = 0
    for i in range(h5py.h5a.get_num_attrs(item.id)):
        attribute = h5py.h5a.open(item.id, index=i)
        name = f"{item.name[:200]} ({attribute.name.decode(errors='replace')[:200]})"
        kind = attribute.get_type()
        _check_type(kind, name)
        n_entries = math.prod(attribute.shape)
        _check_size(n_entries * kind.get_size(), budget - total, name)
        total += n_entries * kind.get_size()
        n_references += n_entries if _is_reference(kind) else 0
    return total, n_references


def _is_reference(kind):
    """Whether values of an HDF5 type are texts that lie elsewhere in the file."""
    import h5py

    return kind.get_class() == h5py.h5t.STRING and kind.is_variable_str()


def _check_type(kind, name):
    import h5py

    plain = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM, h5py.h5t.STRING)
    if kind.get_class() not in plain:
        raise Refused(f"{name!r} in it holds neither numbers nor text")


def _check_size(n_bytes, budget, name):
    if n_bytes > budget:
        raise Refused(
            f"{name!r} in it claims {n_bytes:,} bytes, more than its size can account for"
        )
