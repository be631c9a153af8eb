"""Which networks run on ncnn: those that are mostly wide 3 x 3 convolutions of stride 1.

ncnn computes such a convolution with a quarter of the multiplications (Winograd's F(4 x 4, 3 x 3)),
and everything else about as fast as OpenVINO or slower. The transformations before and after grow
with the sum of the channels in and out, the multiplications with their product: with 64 channels
and less, the transformations cost what the multiplications save. Maps of 14 x 14 and 7 x 7 are
filled up to 16 x 16 and 8 x 8, which is a third more work, and give few columns to multiply. So the
share of multiplications in such convolutions of 128 channels or more, on maps of 28 x 28 or more,
decides. It is a property of the graph: the choice is the same on every machine.

Images per second in float32, the network alone, on an Intel Xeon (AVX-512, AMX) of 2 cores that had
other work to do: one image at a time (``benchmarks/engine_rule.py --threads 1``, means of two
runs), two where a star stands. The last column is the ratio of processor times.

| network | share | OpenVINO | ncnn | ratio | of time |
| --- | --- | --- | --- | --- | --- |
| VGG16 | 0.72 | 5.4 | 6.7 | 1.25 | 1.27 |
| VGG16 to block4_pool | 0.80 | 6.0 | 7.2 | 1.20 | 1.28 |
| VGG16 to block3_pool | 0.69 | 7.9 | 10.7 | 1.40 | 1.23 |
| own, 64-64, 128-128, 256-256 filters, 128 px | 0.62 | 33.7 | 47.1 | 1.40 | 1.42 |
| VGG16 to block2_pool | 0.39 | 16.5 | 17.6 | 1.08 | 1.05 |
| ResNet50 * | 0.12 | 11.9 | 7.9 | 0.67 | 0.70 |
| InceptionV3 * | 0.00 | 10.2 | 6.8 | 0.67 | 0.71 |
| VGG16 to block1_pool | 0.00 | 38.6 | 27.8 | 0.72 | 0.78 |
| DenseNet121 * | 0.00 | 10.7 | 9.3 | 0.87 | 0.70 |
| own, 16-16, 32-32, 64 filters, 96 px | 0.00 | 231 | 209 | 0.91 | 1.02 |
| own, 3 x 3 and 1 x 1 in turns, 112 px | 0.00 | 67.9 | 54.6 | 0.80 | 0.82 |
| MobileNetV2 * | 0.00 | 106 | 58.5 | 0.55 | 0.56 |
| EfficientNetB0 * | 0.00 | 42.5 | 13.5 | 0.32 | 0.33 |

On another server with AVX-512, idle and with two images at the same time, VGG16 ran at 7.5 images
per second on OpenVINO and at 16.8 on ncnn (ratio 2.24), ResNet50 at 26.0 and 26.1, MobileNetV2 at
269 and 232. The threshold keeps to networks that gain on both. Of Keras Applications only VGG16 and
VGG19 (0.76) are above it.
"""

import math

# Share of the multiplications from which on ncnn is chosen.
THRESHOLD = 0.5
# Fewest channels, in and out, with which Winograd's algorithm pays.
MIN_CHANNELS = 128
# Shortest side of the maps with which it does.
MIN_SIDE = 28


def prefers_ncnn(model):
    """Whether ncnn is the faster engine for an OpenVINO model in float32."""
    share = winograd_share(model)
    return share is not None and share >= THRESHOLD


def winograd_share(model):
    """Return the share of multiplications in convolutions that Winograd's algorithm is for.

    It is between 0 and 1, or None if the network takes images of any size.
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
        if kind == "Convolution" and _is_winograd(node, kernel, lengths[1:]):
            of_winograd += count
    return of_winograd / of_all if of_all else 0.0


def _is_winograd(node, kernel, sides):
    n_filters, n_channels, *window = kernel
    attributes = node.get_attributes()
    steps = [*attributes["strides"], *attributes["dilations"]]
    return (
        window == [3, 3]
        and all(int(step) == 1 for step in steps)
        and min(n_filters, n_channels) >= MIN_CHANNELS
        and min(sides) >= MIN_SIDE
    )
