"""User-defined callables: check their output, and compute fingerprints that show changes."""

import hashlib
from collections.abc import Mapping
from functools import partial
from numbers import Number
from types import CodeType, FunctionType, MethodType

import joblib
import numpy as np


def apply_preprocessing(function, pixels):
    """Return what a user-defined preprocessing makes of the pixels of one image."""
    # Functions of Keras change float arrays in place.
    batch = function(np.array(pixels[np.newaxis], np.float32))
    batch = np.asarray(batch, np.float32)
    if batch.shape != (1, *pixels.shape):
        raise ValueError(
            "A callable preprocessing must keep the shape of the batch that it is given, "
            f"{(1, *pixels.shape)}. Got {batch.shape} instead."
        )
    return batch[0]


def apply_pooling(function, maps):
    """Return the row that a user-defined pooling makes of the maps of one image."""
    pooled = function(maps[np.newaxis])
    row = np.asarray(np.nan if pooled is None else pooled, np.float32)
    if row.ndim != 2 or len(row) != 1:
        got = "None" if pooled is None else f"shape {row.shape}"
        raise ValueError(
            "A callable pooling takes maps (n, height, width, channels) and returns an array "
            f"(n, k). Got {got} for maps of shape {(1, *maps.shape)}."
        )
    return row[0]


def describe_function(function):
    """Return text that changes with a function's own code and the values that it holds.

    Such values are defaults, values of a closure, the arguments of `functools.partial`, and the
    attributes of an object that is called. Of these, objects that
    are not callable count by the name of their class. Functions that it calls are not compared.
    """
    digest = hashlib.sha256()
    # Of the values that are being taken: a function may hold itself.
    inside = set()

    def take(value):
        if isinstance(value, (str, bytes, Number, np.generic, type(None), type(...))):
            digest.update(repr(value).encode() + b"\0")
            return
        digest.update(type(value).__qualname__.encode() + b"\0")
        if id(value) not in inside:
            inside.add(id(value))
            take_parts(value)
            inside.remove(id(value))

    def take_parts(value):
        if isinstance(value, (list, tuple)):
            take(len(value))
            for one in value:
                take(one)
        elif isinstance(value, Mapping):
            take([list(entry) for entry in value.items()])
        elif isinstance(value, (set, frozenset)):
            # Their own order is another in each process.
            take(sorted(map(repr, value)))
        elif isinstance(value, np.ndarray):
            take(joblib.hash(value))
        elif isinstance(value, CodeType):
            take([value.co_code, value.co_names, value.co_consts])
        elif isinstance(value, FunctionType):
            closure = list(map(_content, value.__closure__ or ()))
            take([value.__code__, value.__defaults__, value.__kwdefaults__, closure])
        elif isinstance(value, MethodType):
            take([value.__func__, value.__self__])
        elif isinstance(value, partial):
            take([value.func, value.args, value.keywords])
        else:
            take(_name_of(value))
            if callable(value) and not isinstance(value, type):
                take([getattr(type(value).__call__, "__code__", None), _settings_of(value)])

    take(function)
    return f"{_name_of(function)} {digest.hexdigest()[:16]}"


def _name_of(value):
    qualname = getattr(value, "__qualname__", type(value).__qualname__)
    return f"{getattr(value, '__module__', None)}.{qualname}"


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # of a name that has no value yet
        return None


def _settings_of(function):
    """Return what distinguishes a callable object from others of its class."""
    if hasattr(function, "get_config"):
        # The attributes of a layer of Keras change when it is used.
        try:
            return function.get_config()
        except NotImplementedError:
            return None
    return getattr(function, "__dict__", None)
