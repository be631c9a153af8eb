"""Which networks run on ncnn: those that are mostly 3 x 3 convolutions of stride 1.

ncnn computes such a convolution with a quarter of the multiplications (Winograd's F(4 x 4, 3 x 3)),
and everything else about as fast as OpenVINO or slower. So the share of the multiplications in such
convolutions decides. It is a property of the graph: the choice is the same on every machine.

Images per second in float32 on 2 cores (AVX-512), two images at the same time, the network alone:

| network | share | OpenVINO | ncnn | ratio |
| --- | --- | --- | --- | --- |
| VGG16 | 0.99 | 7.5 | 16.8 | 2.24 |
| ResNet50 | 0.48 | 26.0 | 26.1 | 1.00 |
| DenseNet121 | 0.44 | 35 | 36 | 1.03 |
| InceptionV3 | 0.36 | 18.7 | 19.3 | 1.03 |
| MobileNetV3Small | 0.00 | 873 | 950 | 1.09 |
| EfficientNetB0 | 0.00 | 154 | 142 | 0.92 |
| MobileNetV2 | 0.00 | 269 | 232 | 0.86 |

The same on a busy machine, best of four turns of 0.4 s, with preprocessing and average pooling:

| network | share | OpenVINO | ncnn | ratio |
| --- | --- | --- | --- | --- |
| own, 64-64, 128-128, 256-256 filters, 128 px | 0.99 | 34.5 | 69.2 | 2.01 |
| VGG16 to block2_pool | 0.98 | 18.2 | 26.2 | 1.43 |
| own, 32-32, 64-64, 128 filters, 64 px | 0.97 | 845 | 1206 | 1.43 |
| VGG16 to block1_pool | 0.96 | 32.9 | 45.1 | 1.37 |
| own, 16-16, 32-32, 64 filters, 128 px | 0.94 | 571 | 765 | 1.34 |
| own, 3 x 3 and 1 x 1 in turns, 112 px | 0.89 | 20.6 | 27.4 | 1.33 |
| own, one layer of 5 x 5, 128 px | 0.67 | 35.1 | 37.5 | 1.07 |

The threshold lies between the last two. Of Keras Applications only VGG16 and VGG19 (0.996) are
above it; ResNet101 is next with 0.50.
"""

import math

# Share of the multiplications from which on ncnn is chosen.
THRESHOLD = 0.75
# Fewest channels, in and out, with which Winograd's algorithm pays.
MIN_CHANNELS = 16


def prefers_ncnn(model):
    """Whether ncnn is the faster engine for an OpenVINO model in float32."""
    share = winograd_share(model)
    return share is not None and share >= THRESHOLD


def winograd_share(model):
    """Return the share of multiplications in convolutions that Winograd's algorithm is for.

    Parameters
    ----------
    model : openvino.Model
        A network whose only unknown length is the batch.

    Returns
    -------
    share : float or None
        Between 0 and 1; None if the network takes images of any size.
    """
    of_winograd = of_all = 0
    for node in model.get_ops():
        kind = node.get_type_name()
        if kind not in ("Convolution", "GroupConvolution", "MatMul"):
            continue
        lengths = list(node.output(0).get_partial_shape())[1:]
        kernel = node.input(1).get_partial_shape()
        if kernel.is_dynamic or any(length.is_dynamic for length in lengths):
            return None
        kernel = [int(length) for length in kernel.to_shape()]
        lengths = [length.get_length() for length in lengths]
        if kind == "MatMul":
            n_inputs = kernel[-1 if node.get_attributes()["transpose_b"] else -2]
            of_all += math.prod(lengths) * n_inputs
            continue
        # Each number of a kernel is used once at each position of the output.
        count = math.prod(lengths[1:]) * math.prod(kernel)
        of_all += count
        if kind == "Convolution" and _is_winograd(node, kernel):
            of_winograd += count
    return of_winograd / of_all if of_all else 0.0


def _is_winograd(node, kernel):
    n_filters, n_channels, *window = kernel
    attributes = node.get_attributes()
    steps = [*attributes["strides"], *attributes["dilations"]]
    return (
        window == [3, 3]
        and all(int(step) == 1 for step in steps)
        and min(n_filters, n_channels) >= MIN_CHANNELS
    )
