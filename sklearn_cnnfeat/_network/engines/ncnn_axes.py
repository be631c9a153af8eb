"""Operations that move, join and cut values, for ncnn."""

import numpy as np

from sklearn_cnnfeat._network.engines.ncnn_graph import MAPS, Value


def _parameter(t, node):
    _, height, width, channels = node.output(0).get_shape()
    sizes = {"c": channels, "h": height, "w": width}
    blob = t.graph.add("Input", [], {0: width, 1: height, 2: channels}, sizes=sizes)
    rows, columns, depth = (tuple(axis for axis in name if sizes[axis] > 1) for name in "hwc")
    return Value(blob, sizes, (rows, columns, depth))


def _convert(t, node):
    if node.output(0).get_element_type() != node.input(0).get_element_type():
        t.refuse(node, "changes the type of numbers")
    return t.value(node, 0)


def _reshape(t, node):
    value = t.value(node, 0).regrouped(node.output(0).get_shape()[1:])
    if value is None:
        t.refuse(node, "divides an axis")
    return value


def _transpose(t, node):
    value = t.value(node, 0)
    order = [int(axis) for axis in t.constant(node, 1).ravel()]
    if order[0] != 0:
        t.refuse(node, "moves the batch")
    return Value(value.blob, value.sizes, tuple(value.axes[axis - 1] for axis in order[1:]))


def _concat(t, node):
    values = [t.value(node, i) for i in range(len(node.inputs()))]
    axis = int(node.get_attributes()["axis"]) % len(node.output(0).get_shape()) - 1
    if axis < 0:
        t.refuse(node, "joins images")
    if all(len(value.axes) == 1 for value in values):
        values = [t.graph.vector(value) for value in values]
    elif any(value.is_maps for value in values):
        values = [t.graph.maps(value) for value in values]
    letter = _letter(t, node, values, axis)
    if len({value.axes[:axis] + value.axes[axis + 1 :] for value in values}) > 1:
        t.refuse(node, "joins values of different layouts")
    sizes = {**values[0].sizes, letter: sum(value.sizes[letter] for value in values)}
    return _join(t, values, axis, letter, sizes)


def _join(t, values, axis, letter, sizes):
    blobs = [value.blob for value in values]
    blob = t.graph.add("Concat", blobs, {0: MAPS.index(letter)}, sizes=sizes)
    axes = list(values[0].axes)
    axes[axis] = (letter,) if sizes[letter] > 1 else ()
    return Value(blob, sizes, tuple(axes))


def _letter(t, node, values, axis):
    """Return the axis of the blobs that axis `axis` of the outputs is."""
    groups = {value.axes[axis] for value in values} - {()}
    if not groups:
        # It has length 1: any axis of the blob that no other axis of the output is made of.
        used = {letter for group in values[0].axes for letter in group}
        groups = {(letter,) for letter in sorted(values[0].sizes) if letter not in used}
        groups = {min(groups)} if groups else groups
    if len(groups) != 1 or len(min(groups)) != 1:
        t.refuse(node, "works on an axis that ncnn does not have")
    return min(groups)[0]


def _slice(t, node):
    starts, stops, steps = (t.constant(node, i).ravel().tolist() for i in (1, 2, 3))
    n_axes = len(node.output(0).get_shape())
    axes = t.constant(node, 4).ravel().tolist() if len(node.inputs()) > 4 else range(len(starts))
    slices = [slice(None)] * n_axes
    for axis, *bounds in zip(axes, starts, stops, steps, strict=True):
        slices[axis % n_axes] = slice(*bounds)
    return _crop(t, node, slices)


def _strided_slice(t, node):
    begin, end, steps = (t.constant(node, i).ravel().tolist() for i in (1, 2, 3))
    attributes = node.get_attributes()
    for mask in ("new_axis_mask", "shrink_axis_mask", "ellipsis_mask"):
        if any(attributes.get(mask, ())):
            t.refuse(node, f"has a {mask}")

    def masked(bounds, mask):
        mask = [*attributes[mask], *[0] * len(bounds)]
        return [None if mask[i] else bound for i, bound in enumerate(bounds)]

    bounds = zip(masked(begin, "begin_mask"), masked(end, "end_mask"), steps, strict=True)
    return _crop(t, node, [slice(*bound) for bound in bounds])


def _crop(t, node, slices):
    """Keep a part of each axis, the batch first."""
    value = t.value(node, 0)
    if slices[0].indices(1) != (0, 1, 1):
        t.refuse(node, "cuts the batch")
    for axis, part in enumerate(slices[1:]):
        length = value.shape[axis]
        start, stop, step = part.indices(length)
        if step == -1 and (start, stop) == (length - 1, -1):
            value = _reverse(t, node, value, axis)
        elif step != 1:
            t.refuse(node, "takes every other number")
        elif (start, stop) != (0, length):
            value = _cut(t, node, value, axis, start, stop)
    return value


def _cut(t, node, value, axis, start, stop):
    """Keep positions `start` to `stop` of one axis."""
    if len(value.axes) == 1:
        value = t.graph.vector(value)
    letter = _letter(t, node, [value], axis)
    sizes = {**value.sizes, letter: stop - start}
    if value.is_maps:
        begin = {name: start if name == letter else 0 for name in sizes}
        params = {0: begin["w"], 1: begin["h"], 2: begin["c"]}
        params |= {3: sizes["w"], 4: sizes["h"], 5: sizes["c"]}
    else:
        params = {0: start, 3: sizes["c"]}
    blob = t.graph.add("Crop", [value.blob], params, sizes=sizes)
    axes = list(value.axes)
    axes[axis] = (letter,) if stop - start > 1 else ()
    return Value(blob, sizes, tuple(axes))


def _reverse(t, node, value, axis):
    """Reverse the channels of a picture."""
    length = value.shape[axis]
    if length == 1:
        return value
    if length > 4:
        t.refuse(node, "reverses a long axis")
    letter = _letter(t, node, [value], axis)
    parts = [_cut(t, node, value, axis, i, i + 1) for i in reversed(range(length))]
    return _join(t, parts, axis, letter, value.sizes)


def _gather(t, node):
    value = t.value(node, 0)
    indices = t.constant(node, 1)
    axis = int(t.constant(node, 2).ravel()[0]) % (len(value.shape) + 1) - 1
    length = value.shape[axis]
    if axis < 0 or [i % length for i in indices.ravel().tolist()] != [*reversed(range(length))]:
        t.refuse(node, "picks numbers")
    return _reverse(t, node, value, axis)


def _pad(t, node):
    value = t.value(node, 0)
    before, after = (t.constant(node, i).ravel().astype(int) for i in (1, 2))
    fill = float(t.constant(node, 3).ravel()[0]) if len(node.inputs()) > 3 else 0.0
    mode = node.get_attributes()["pad_mode"]
    if mode != "constant" or before[0] or after[0]:
        t.refuse(node, f"pads the batch, or in mode {mode}")
    if min(before.min(), after.min()) < 0:
        lengths = np.array((1, *value.shape)) + np.minimum(after, 0)
        value = _crop(t, node, [*map(slice, -np.minimum(before, 0), lengths)])
        before, after = np.maximum(before, 0), np.maximum(after, 0)
    value = t.graph.maps(value)
    around = dict.fromkeys(MAPS, (0, 0))
    axes = list(value.axes)
    for axis in range(len(axes)):
        if before[axis + 1] or after[axis + 1]:
            letter = _letter(t, node, [value], axis)
            around[letter] = (int(before[axis + 1]), int(after[axis + 1]))
            axes[axis] = (letter,)
    sizes = {axis: value.sizes[axis] + sum(around[axis]) for axis in MAPS}
    params = {0: around["h"][0], 1: around["h"][1], 2: around["w"][0], 3: around["w"][1]}
    params |= {5: fill, 7: around["c"][0], 8: around["c"][1]}
    blob = t.graph.add("Padding", [value.blob], params, sizes=sizes)
    return Value(blob, sizes, tuple(axes))


OPERATIONS = {
    "Parameter": _parameter,
    "Convert": _convert,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "StridedSlice": _strided_slice,
    "Gather": _gather,
    "Pad": _pad,
}
