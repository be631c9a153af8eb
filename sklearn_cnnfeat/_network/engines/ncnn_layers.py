"""Operations that compute, for ncnn: convolutions, dense layers, poolings, elementwise ones."""

import numpy as np

from sklearn_cnnfeat._network.engines.ncnn_graph import MAPS, Value

_CONVOLUTIONS = ("Convolution", "ConvolutionDepthWise", "InnerProduct")
# Numbers that one float32 sum runs over before its rounding shows beside that of the network.
_LONG_SUM = 64
_BINARY = {
    "Add": 0,
    "Subtract": 1,
    "Multiply": 2,
    "Divide": 3,
    "Maximum": 4,
    "Minimum": 5,
    "Power": 6,
}
# The same with the constant as the first operand.
_REVERSED = {"Subtract": 7, "Divide": 8, "Power": 9}
_UNARY = {"Abs": 0, "Negative": 1, "Sqrt": 5, "Exp": 7, "Log": 8}
# Parameters of ncnn's layers.
_ACTIVATION, _ACTIVATION_NUMBERS = 9, 10


def _append(t, value, kind, params=(), weights=(), others=()):
    """Append a layer that keeps the shape of `value`."""
    blobs = [value.blob, *(other.blob for other in others)]
    blob = t.graph.add(kind, blobs, dict(params), weights, value.sizes)
    return Value(blob, value.sizes, value.axes)


def _number(t, node, i):
    return float(t.constant(node, i).ravel()[0])


# --- convolutions and dense layers ----------------------------------------------------------------


def _as_maps(t, node):
    """Return the first input as maps whose axes are in the order that ncnn takes them in."""
    value = t.graph.maps(t.value(node, 0))
    if value.axes != Value.of_maps("", *(value.sizes[axis] for axis in MAPS)).axes:
        t.refuse(node, "reads maps whose axes are not channels, rows, columns")
    return value


def _convolution(t, node):
    kernel = t.constant(node, 1)
    if kernel.ndim != 4:
        t.refuse(node, "is not over rows and columns")
    return _convolve(t, node, "Convolution", kernel, {})


def _group_convolution(t, node):
    kernel = t.constant(node, 1)
    if kernel.ndim != 5:
        t.refuse(node, "is not over rows and columns")
    groups = kernel.shape[0]
    kernel = kernel.reshape(-1, *kernel.shape[2:])
    if groups == 1:
        return _convolve(t, node, "Convolution", kernel, {})
    return _convolve(t, node, "ConvolutionDepthWise", kernel, {7: groups})


def _convolve(t, node, kind, kernel, params):
    value = _as_maps(t, node)
    attributes = node.get_attributes()
    n_filters, _, height, width = kernel.shape
    strides = [int(step) for step in attributes["strides"]]
    dilations = [int(step) for step in attributes["dilations"]]
    (top, bottom), (left, right) = _pads(node, (height, width), strides, dilations)
    params = {**params, 0: n_filters, 1: width, 11: height, 6: kernel.size}
    params |= {2: dilations[1], 12: dilations[0], 3: strides[1], 13: strides[0]}
    params |= {4: left, 15: right, 14: top, 16: bottom}
    _, _, rows, columns = node.output(0).get_shape()
    result = Value.of_maps("", n_filters, rows, columns)
    blob = t.graph.add(kind, [value.blob], params, [(kernel, True)], result.sizes)
    return Value(blob, result.sizes, result.axes)


def _pads(node, kernel, strides, dilations):
    """Return the rows above and below, and the columns left and right, for the output's shape."""
    attributes = node.get_attributes()
    mode = attributes["auto_pad"].lower()
    sizes = zip(node.input(0).get_shape(), node.output(0).get_shape(), strict=True)
    pads = []
    for i, (before, after) in enumerate(list(sizes)[2:]):
        total = (after - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - before
        if mode == "explicit":
            begin = int(attributes["pads_begin"][i])
        elif mode == "valid":
            begin = 0
        else:
            begin = (max(total, 0) + (mode == "same_lower")) // 2
        # None at the end where the last window does not reach the last row; more than OpenVINO
        # was told where it rounds the size of the output up.
        pads.append((begin, max(total - begin, 0)))
    return pads


def _mat_mul(t, node):
    attributes = node.get_attributes()
    value, matrix = t.value(node, 0), t.constant(node, 1)
    if matrix.ndim != 2 or attributes["transpose_a"]:
        t.refuse(node, "is not a dense layer")
    if attributes["transpose_b"]:
        matrix = matrix.T
    n_inputs, n_units = matrix.shape
    *positions, group = value.axes
    units = ("c",) if n_units > 1 else ()
    if any(positions):
        # A dense layer at each position is a convolution of one position.
        if group != (("c",) if n_inputs > 1 else ()) or not value.is_maps:
            t.refuse(node, "is a dense layer on another axis than channels")
        kernel = np.ascontiguousarray(matrix.T).reshape(n_units, n_inputs, 1, 1)
        sizes = {**value.sizes, "c": n_units}
        params = {0: n_units, 1: 1, 6: kernel.size}
        blob = t.graph.add("Convolution", [value.blob], params, [(kernel, True)], sizes)
    else:
        # ncnn flattens maps in the order of its own axes: the matrix is permuted to it.
        stored = [axis for axis in MAPS if axis in group]
        kernel = matrix.reshape(*(value.sizes[axis] for axis in group), n_units)
        kernel = kernel.transpose(len(group), *(group.index(axis) for axis in stored))
        kernel = np.ascontiguousarray(kernel).reshape(n_units, n_inputs)
        sizes = {"c": n_units}
        params = {0: n_units, 2: kernel.size}
        blob = t.graph.add("InnerProduct", [value.blob], params, [(kernel, True)], sizes)
    return Value(blob, sizes, (*positions, units))


# --- activations ----------------------------------------------------------------------------------


def _activate(t, node, kind, fused, numbers=()):
    """Append an activation, or make it part of the convolution before it."""
    value = t.value(node, 0)
    layer = t.graph.producer(value.blob)
    if layer.kind in _CONVOLUTIONS and _ACTIVATION not in layer.params and not t.is_shared(value):
        layer.params[_ACTIVATION] = fused
        if numbers:
            layer.params[_ACTIVATION_NUMBERS] = list(numbers)
        return value
    return _append(t, value, kind, dict(enumerate(numbers)))


def _relu(t, node):
    return _activate(t, node, "ReLU", 1)


def _clamp(t, node):
    attributes = node.get_attributes()
    return _activate(t, node, "Clip", 3, (float(attributes["min"]), float(attributes["max"])))


def _h_swish(t, node):
    return _append(t, t.value(node, 0), "HardSwish", {0: 1 / 6, 1: 0.5})


def _swish(t, node):
    if len(node.inputs()) > 1 and _number(t, node, 1) != 1.0:
        t.refuse(node, "has a beta")
    return _append(t, t.value(node, 0), "Swish")


def _hard_sigmoid(t, node):
    numbers = {0: _number(t, node, 1), 1: _number(t, node, 2)}
    return _append(t, t.value(node, 0), "HardSigmoid", numbers)


def _elu(t, node):
    return _append(t, t.value(node, 0), "ELU", {0: float(node.get_attributes()["alpha"])})


def _gelu(t, node):
    mode = node.get_attributes().get("approximation_mode", "ERF").lower()
    return _append(t, t.value(node, 0), "GELU", {0: int(mode == "tanh")})


def _p_relu(t, node):
    slopes = t.constant(node, 1)
    if slopes.size > 1:
        t.refuse(node, "has a slope per channel")
    return _append(t, t.value(node, 0), "ReLU", {0: _number(t, node, 1)})


def _softmax(t, node):
    value = t.value(node, 0)
    if len(value.axes) != 1 or value.is_maps:
        t.refuse(node, "is over maps")
    return _append(t, value, "Softmax", {0: 0, 1: 1})


def _plain(kind, params=()):
    """Return a function for an operation of one input that needs no attributes."""
    return lambda t, node: _append(t, t.value(node, 0), kind, params)


# --- arithmetic -----------------------------------------------------------------------------------


def _binary(t, node):
    kind = node.get_type_name()
    constants = [t.evaluate(entry.get_source_output()) for entry in node.inputs()]
    if constants[0] is None and constants[1] is None:
        return _combine(t, node, _BINARY[kind])
    first = constants[0] is not None
    constant, value = constants[0 if first else 1], t.value(node, 1 if first else 0)
    if tuple(node.output(0).get_shape()) != (1, *value.shape):
        t.refuse(node, "enlarges a value")
    constant = constant.reshape((1,) * (1 + len(value.shape) - constant.ndim) + constant.shape)
    numbers = _per_channel(value, constant)
    if numbers is not None:
        if kind == "Multiply":
            return _multiply(t, value, numbers)
        if kind == "Add" or (kind == "Subtract" and not first):
            return _add(t, value, numbers if kind == "Add" else -numbers)
    operation = _REVERSED.get(kind, _BINARY[kind]) if first else _BINARY[kind]
    if constant.size == 1:
        return _with_number(t, value, operation, float(constant.ravel()[0]))
    array = value.stored(np.broadcast_to(constant, (1, *value.shape)).reshape(value.shape))
    array = np.ascontiguousarray(array, np.float32)
    params = dict(enumerate(reversed(array.shape)))
    blob = t.graph.add("MemoryData", [], params, [(array, False)], value.sizes)
    other = Value(blob, value.sizes, value.axes)
    return _append(t, value, "BinaryOp", {0: operation}, others=[other])


def _with_number(t, value, operation, number):
    """Compute with a number as the second operand."""
    if operation == _BINARY["Power"] and number in (2.0, 3.0):
        # ncnn's power goes by logarithms, which rounds off more than products do.
        square = _append(t, value, "UnaryOp", {0: 4})
        if number == 2.0:
            return square
        return _append(t, square, "BinaryOp", {0: _BINARY["Multiply"]}, others=[value])
    return _append(t, value, "BinaryOp", {0: operation, 1: 1, 2: number})


def _per_channel(value, constant):
    """Return one number per channel of a constant with all axes of `value`; None for others."""
    for length, group in zip(constant.shape[1:], value.axes, strict=True):
        if length > 1 and group != ("c",):
            return None
    numbers = constant.astype(np.float32).ravel()
    return np.array(np.broadcast_to(numbers, (value.sizes["c"],)))


def _open_layer(t, value, kinds):
    """Return the layer behind a value if its weights may still change; otherwise None."""
    layer = t.graph.producer(value.blob)
    if layer.kind in kinds and _ACTIVATION not in layer.params and not t.is_shared(value):
        return layer
    return None


def _multiply(t, value, factors):
    layer = _open_layer(t, value, _CONVOLUTIONS)
    if layer is None:
        return _append(t, value, "Scale", {0: factors.size}, [(factors, False)])
    (kernel, flag), *biases = layer.weights
    scaled = kernel * factors.reshape(-1, *[1] * (kernel.ndim - 1))
    layer.weights = [(scaled, flag), *((bias * factors, False) for bias, _ in biases)]
    return value


def _add(t, value, terms):
    layer = _open_layer(t, value, (*_CONVOLUTIONS, "Scale"))
    if layer is not None:
        has_bias = 1 if layer.kind in ("InnerProduct", "Scale") else 5
        if has_bias not in layer.params:
            layer.params[has_bias] = 1
            layer.weights.append((terms, False))
            return value
        if layer.kind != "Scale":
            layer.weights[1] = (layer.weights[1][0] + terms, False)
            return value
    weights = [(np.ones_like(terms), False), (terms, False)]
    return _append(t, value, "Scale", {0: terms.size, 1: 1}, weights)


def _batch_norm_inference(t, node):
    gamma, beta, mean, variance = (t.constant(node, i).astype(np.float64) for i in (1, 2, 3, 4))
    value = t.value(node, 0)
    if value.axes[0] != (("c",) if value.sizes["c"] > 1 else ()):
        t.refuse(node, "is not over channels")
    scale = gamma / np.sqrt(variance + node.get_attributes()["epsilon"])
    value = _multiply(t, value, scale.astype(np.float32))
    return _add(t, value, (beta - mean * scale).astype(np.float32))


def _combine(t, node, operation):
    """Compute with two values, one of which may have one number per channel."""
    first, second = t.value(node, 0), t.value(node, 1)
    if len(first.axes) != len(second.axes):
        t.refuse(node, "has operands with different numbers of axes")
    if first.is_maps != second.is_maps:
        first, second = t.graph.maps(first), t.graph.maps(second)
    pairs = list(zip(first.axes, second.axes, strict=True))
    if any(a and b and a != b for a, b in pairs):
        t.refuse(node, "has operands of different layouts")
    if all(a or not b for a, b in pairs):
        larger = first
    elif all(b or not a for a, b in pairs):
        larger = second
    else:
        t.refuse(node, "enlarges both operands")
    blobs = [first.blob, second.blob]
    blob = t.graph.add("BinaryOp", blobs, {0: operation}, sizes=larger.sizes)
    return Value(blob, larger.sizes, larger.axes)


# --- poolings -------------------------------------------------------------------------------------


def _max_pool(t, node):
    return _pool(t, node, {0: 0})


def _avg_pool(t, node):
    attributes = node.get_attributes()
    counts_padding = not attributes["exclude-pad"]
    if counts_padding and attributes["rounding_type"].lower() != "floor":
        t.refuse(node, "counts padding and rounds the size of its output up")
    return _pool(t, node, {0: 1, 6: int(counts_padding)})


def _pool(t, node, params):
    value = _as_maps(t, node)
    attributes = node.get_attributes()
    kernel = [int(size) for size in attributes["kernel"]]
    strides = [int(step) for step in attributes["strides"]]
    dilations = [int(step) for step in attributes.get("dilations", (1, 1))]
    if dilations != [1, 1]:
        t.refuse(node, "is dilated")
    (top, bottom), (left, right) = _pads(node, kernel, strides, dilations)
    params = {**params, 1: kernel[1], 11: kernel[0], 2: strides[1], 12: strides[0]}
    # Mode 1: as much padding as is said here.
    params |= {3: left, 14: right, 13: top, 15: bottom, 5: 1}
    _, channels, rows, columns = node.output(0).get_shape()
    result = Value.of_maps("", channels, rows, columns)
    blob = t.graph.add("Pooling", [value.blob], params, sizes=result.sizes)
    return Value(blob, result.sizes, result.axes)


def _reduce(t, node):
    """Pool over all rows and columns."""
    method = {"ReduceMax": 0, "ReduceMean": 1}[node.get_type_name()]
    value = t.value(node, 0)
    n_axes = len(value.axes) + 1
    reduced = {int(axis) % n_axes - 1 for axis in t.constant(node, 1).ravel()}
    letters = {letter for axis in reduced for letter in value.axes[axis]}
    keep = node.get_attributes()["keep_dims"]
    axes = tuple(
        () if axis in reduced else group
        for axis, group in enumerate(value.axes)
        if keep or axis not in reduced
    )
    if -1 in reduced:
        t.refuse(node, "is over images")
    if not letters:
        return Value(value.blob, value.sizes, axes)
    if letters != {axis for axis in ("h", "w") if value.sizes.get(axis, 1) > 1}:
        t.refuse(node, "is not over rows and columns")
    blob, sizes = value.blob, value.sizes
    if method == 1 and sizes["h"] * sizes["w"] > _LONG_SUM:
        # Each row first: one sum over all positions rounds off more.
        params = {0: method, 1: sizes["w"], 11: 1, 5: 1, 6: 1}
        sizes = {**sizes, "w": 1}
        blob = t.graph.add("Pooling", [blob], params, sizes=sizes)
    sizes = {"c": sizes["c"]}
    blob = t.graph.add("Pooling", [blob], {0: method, 4: 1}, sizes=sizes)
    return Value(blob, sizes, axes)


OPERATIONS = {
    "Convolution": _convolution,
    "GroupConvolution": _group_convolution,
    "MatMul": _mat_mul,
    "Relu": _relu,
    "Clamp": _clamp,
    "HSwish": _h_swish,
    "Swish": _swish,
    "HSigmoid": _plain("HardSigmoid", {0: 1 / 6, 1: 0.5}),
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": _plain("Sigmoid"),
    "Tanh": _plain("TanH"),
    "Mish": _plain("Mish"),
    "Elu": _elu,
    "Gelu": _gelu,
    "PRelu": _p_relu,
    "Softmax": _softmax,
    **{kind: _plain("UnaryOp", {0: number}) for kind, number in _UNARY.items()},
    **dict.fromkeys(_BINARY, _binary),
    "BatchNormInference": _batch_norm_inference,
    "MaxPool": _max_pool,
    "AvgPool": _avg_pool,
    "ReduceMean": _reduce,
    "ReduceMax": _reduce,
}
