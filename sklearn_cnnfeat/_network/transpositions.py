"""Orders of axes: the stored order of a value of a graph, and its logical order.

An *order* is a tuple: ``logical = transpose(kept, order)``. None is the identity.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sklearn_cnnfeat._network.runtime import import_operations

# Types of constants that NumPy knows under the same name, so that they can be rearranged here.
_NUMPY_TYPES = {"f64", "f32", "f16", "i64", "i32", "i16", "i8", "u64", "u32", "u16", "u8"}
# Stands for a dimension that is not known when values are compared by size.
_TYPICAL_LENGTH = 1000
# Of maps that are channels first in the network, and were computed channels last.
_KEPT_CHANNELS_LAST = (0, 3, 1, 2)


@dataclass(frozen=True)
class Carried:
    """A value of the graph: what holds it, and in which order of axes."""

    output: Any  # openvino.Output
    order: tuple | None = None

    @property
    def shape(self):
        """Logical shape; None for the length of a dimension that is not known."""
        kept = lengths(self.output)
        return kept if self.order is None else tuple(kept[axis] for axis in self.order)

    @property
    def size(self):
        """Number of elements, about."""
        return math.prod(_TYPICAL_LENGTH if n is None else n for n in self.shape)


def lengths(output):
    """Return the shape of an output; None for a length that is not known."""
    return tuple(n.get_length() if n.is_static else None for n in output.get_partial_shape())


def normalized(order):
    """Return None for an order that changes nothing."""
    return None if list(order) == sorted(order) else tuple(order)


def composed(order, then):
    """Return the one order that has the effect of `order` and `then`."""
    return tuple(order[axis] for axis in then)


def inverse(order):
    """Return the order that takes `order` back."""
    return tuple(sorted(range(len(order)), key=order.__getitem__))


def constant_of(output):
    """Return the values of a constant as an array, or None if `output` is not a constant."""
    node = output.get_node()
    return node.data if node.get_type_name() == "Constant" else None


def integers(values):
    """Return a constant of 64-bit integers."""
    ops = import_operations()

    return ops.constant(np.array(values, np.int64)).output(0)


def moved(output, order):
    """Return `output` transposed by `order`, by a reshape where only axes of length 1 move."""
    ops = import_operations()

    shape = lengths(output)
    long = [axis for axis in order if shape[axis] != 1]
    if long == sorted(long) and shape.count(None) <= 1:
        target = [-1 if shape[axis] is None else shape[axis] for axis in order]
        return ops.reshape(output, integers(target), False).output(0)
    return ops.transpose(output, integers(order)).output(0)


def arranged(value, order):
    """Return an output that holds `value` in `order`, for an elementwise operation.

    The value may have fewer axes than `order`: leading ones of length 1 are added as NumPy does.
    """
    ops = import_operations()

    shape = value.shape
    if all(n == 1 for n in shape):
        return value.output
    extra = len(order) - len(shape)
    own = value.order or tuple(range(len(shape)))
    own = (*range(extra), *(extra + axis for axis in own))
    move = normalized(composed(own, inverse(order)))
    if move is None:
        return value.output
    output = value.output
    values = constant_of(output)
    if values is not None and output.get_element_type().get_type_name() in _NUMPY_TYPES:
        values = values.reshape((1,) * extra + values.shape).transpose(move)
        return ops.constant(np.ascontiguousarray(values)).output(0)
    if extra:
        output = ops.unsqueeze(output, integers(range(extra))).output(0)
    return moved(output, move)


def cheapest_order(values, rank):
    """Return the order of `rank` axes in which most of `values` is kept already.

    Constants do not count, since they are rearranged once. None if no other value is carried.
    """
    sizes = {}
    for value in values:
        if constant_of(value.output) is None:
            extra = rank - len(value.shape)
            own = value.order or tuple(range(len(value.shape)))
            own = (*range(extra), *(extra + axis for axis in own))
            sizes[own] = sizes.get(own, 0) + value.size
    if not any(normalized(order) for order in sizes):
        return None
    # Of orders that cost the same, the one with channels first: convolutions take and give it.
    return max(sizes, key=lambda order: (sizes[order], _preference(order)))


def _preference(order):
    if order == _KEPT_CHANNELS_LAST:
        return 0
    return 1 if normalized(order) is None else 2
