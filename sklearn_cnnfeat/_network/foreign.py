"""Networks of other frameworks than Keras: how their graphs are finished and checked."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from sklearn_cnnfeat._network import conversion
from sklearn_cnnfeat._network.converted import ConversionError
from sklearn_cnnfeat._network.engines.openvino import compile_in_float32, first_line
from sklearn_cnnfeat._network.process import KerasProcess
from sklearn_cnnfeat._network.record import NetworkRecord
from sklearn_cnnfeat._network.runtime import import_openvino

# Where rounding grows, layers may differ so many times as far as by pixels whose last bits differ,
# up to a limit.
_LAST_BITS, _GROWTH, _MOST_GROWTH = 2**-22, 10, 0.05
# Advice where weights are given for a network that has its own.
OWN_WEIGHTS = "a network of your own has its weights. Leave weights out."


@lru_cache(maxsize=1)
def process():
    """Return the process that reads ONNX files and builds networks of timm."""
    # Without a GPU, which the process would only take memory of.
    return KerasProcess({"CUDA_VISIBLE_DEVICES": "-1"})


def finish(converted, source, folder, converter, is_lasting=True):
    """Fold, lay out, check and write a network; return its record as plain values."""
    pixels = converted.model.inputs[0].partial_shape
    height, width, channels = (n.get_length() if n.is_static else None for n in list(pixels)[1:])
    record = NetworkRecord(
        layers=tuple(converted.layers),
        n_layers=len(converted.layers),
        input_shape=(height, width, channels),
        converter=converter,
        is_lasting=is_lasting,
        last=converted.last,
    )
    paths = conversion.layers_to_compare(converted.layers, converted.outputs)
    # Numbers around zero, as most networks take them.
    images = conversion.sample_pixels(record.input_shape, 1) / np.float32(127.5) - 1
    try:
        expected = [_run(converted, path, images) for path in paths]
    except Exception as error:
        raise ConversionError(
            f"OpenVINO cannot take {source.label}: {first_line(error)}."
        ) from error
    record, computed = conversion.write_simplified(converted, record, paths, images, folder, source)
    reasons = [
        _reason_to_refuse(path, found.reshape(wanted.shape), wanted, nearby, source)
        for path, found, (wanted, nearby) in zip(paths, computed, expected, strict=True)
    ]
    reason = next(filter(None, reasons), None)
    return replace(record, reason=reason).to_json()


def _run(converted, path, images):
    """Return what the graph of a front end gives for a layer, before anything is changed in it.

    That is one array for the images, and one for images whose last bits differ: how far rounding
    alone goes.
    """
    openvino = import_openvino()
    part = openvino.Model([converted.outputs[path]], converted.model.get_parameters()).clone()
    compiled = compile_in_float32(part)
    return [compiled(pixels)[0] for pixels in (images, images * np.float32(1 + _LAST_BITS))]


def _reason_to_refuse(path, computed, expected, nearby, source):
    """Return why the numbers of a layer are not to be trusted; None where they are."""
    growth = _GROWTH * conversion.difference(nearby, expected)
    allowed = max(conversion.TOLERANCE, min(growth, _MOST_GROWTH))
    difference = conversion.difference(computed, expected)
    if difference <= allowed:
        return None
    return (
        f"Layer {path!r} of {source.label} differs by {difference:.1e} of the largest value "
        f"once its graph is simplified (allowed: {allowed:.0e})."
    )
