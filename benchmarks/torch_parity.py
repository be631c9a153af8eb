"""Are the features those of PyTorch and of ONNX Runtime? Two networks and more of each family.

Run as ``python benchmarks/torch_parity.py [NAME ...]``; without names, all networks that are not
yet in ``benchmarks/results/torch_parity.json``. Each network runs in a separate process on two
photographs, without a download and with a temporary home. Compared are the first layer with
weights, the middle one and the last one, relative to the largest value of the layer.

Kernels are scaled after He et al.; scales, shifts, means and variances of normalizations lie
between 0.5 and 1.5. Some networks amplify rounding so much under such weights that PyTorch's
float32 is itself farther from its float64 than a quarter of the limit, so that the same arithmetic
in another order may differ by more than the limit. These are computed again with the means and
variances of parts of the photographs, as training leaves them. Both results are in the
report, each with its distance to float64.
"""

import copy
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from _common import RESULTS, begin_series, run_alone

from sklearn_cnnfeat import CNNFeatureTransformer, layer_summary

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "network"))
from torch_networks import scale_weights

REPORT = RESULTS / "torch_parity.json"
LIMIT = 5e-6  # of the largest value of a layer

# Family -> networks of timm, or of torchvision, with the size of images where it is not their own.
FAMILIES = {
    "ResNet": ["resnet18", "resnet50"],
    "VGG": ["vgg11", "vgg16_bn"],
    "DenseNet": ["densenet121", "densenet169"],
    "EfficientNet": ["efficientnet_b0", "tf_efficientnetv2_b0"],
    "MobileNetV3": ["mobilenetv3_small_100", "mobilenetv3_large_100"],
    "RegNet": ["regnetx_002", "regnety_004"],
    "ConvNeXt": ["convnext_atto", "convnext_tiny"],
    "ConvNeXt V2": ["convnextv2_atto", "convnextv2_nano"],
    "Swin": ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"],
    "ViT": ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"],
    "DINOv2": ["vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2"],
    "EfficientViT": ["efficientvit_b0", "efficientvit_b1", "efficientvit_m0"],
    "FastViT": ["fastvit_t8", "fastvit_sa12"],
    "Inception": ["inception_v3", "inception_v4"],
    "SqueezeNet": ["torchvision/squeezenet1_0", "torchvision/squeezenet1_1"],
}
SIZES = {"vit_small_patch14_reg4_dinov2": 224, "vit_small_patch14_dinov2": 224}
# Those that are exported and compared with ONNX Runtime too: one of each family.
EXPORTED = [names[0] for names in FAMILIES.values()]
_MEAN, _STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


# --- networks -------------------------------------------------------------------------------------


def build(name):
    """Return a network in evaluation mode and the side of its images."""
    import torch

    torch.manual_seed(0)
    if name.startswith("torchvision/"):
        return import_torchvision().models.get_model(name.partition("/")[2]).eval(), 224
    import timm

    options = {"img_size": SIZES[name]} if name in SIZES else {}
    network = timm.create_model(name, **options).eval()
    return network, SIZES.get(name) or network.pretrained_cfg["input_size"][1]


def import_torchvision():
    """Import torchvision, also a wheel that has no compiled operators."""
    import torch

    try:
        import torchvision
    except RuntimeError:  # its Python part describes an operator that is not there
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        import torchvision

        torchvision.library = library  # lives as long as the module
    return torchvision


def take_statistics(network, inputs):
    """Set the means and variances of batch normalizations to those of some images."""
    import torch

    parts = [
        part
        for part in network.modules()
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)
    ]

    def note(part, arguments):
        (values,) = arguments
        axes = [axis for axis in range(values.ndim) if axis != 1]
        variance, mean = torch.var_mean(values.double(), axes, correction=0)
        part.running_mean.copy_(mean)
        # Channels that hardly vary would have their rounding amplified.
        part.running_var.copy_(variance + 0.1 * variance.mean())

    handles = [part.register_forward_pre_hook(note) for part in parts]
    with torch.no_grad():
        network(torch.from_numpy(inputs))
    for handle in handles:
        handle.remove()


# --- comparison -----------------------------------------------------------------------------------


def make_photos(size):
    """Return two photographs as an array (2, size, size, 3) of uint8."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    return np.stack(
        [Image.fromarray(im).resize((size, size)) for im in load_sample_images().images]
    )


def make_parts(size):
    """Return 24 parts of two photographs, as `make_photos` does.

    The pooled features of whole photographs hardly differ: with their variance, a normalization
    behind the pooling would multiply rounding by twenty.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    parts = []
    for photo in map(Image.fromarray, load_sample_images().images):
        for share in (2, 3, 4):
            width, height = photo.width // share, photo.height // share
            parts += [
                photo.crop((left, top, left + width, top + height))
                for left in (0, photo.width - width)
                for top in (0, photo.height - height)
            ]
    return np.stack([part.resize((size, size)) for part in parts])


def choose_layers(model):
    """Return the paths of the first layer with weights, the middle one and the last one."""
    table = layer_summary(model)
    usable = table[[isinstance(shape, tuple) for shape in table["output_shape"]]]
    first = usable["path"][usable["n_parameters"] > 0].iloc[0]
    paths = [first, usable["path"].iloc[len(usable) // 2], usable["path"].iloc[-1]]
    return list(dict.fromkeys(paths))


def run_torch(network, paths, inputs):
    """Return what some submodules give, by hooks; before others change it in place."""
    import torch

    found, counts = {}, {}

    def keep(path):
        def hook(_, __, output):
            counts[path] = counts.get(path, 0) + 1
            name = path if counts[path] == 1 else f"{path}#{counts[path]}"
            if name in paths:
                found[name] = output.detach().clone().numpy()

        return hook

    wanted = {path.partition("#")[0] for path in paths}
    handles = [
        part.register_forward_hook(keep(path))
        for path, part in network.named_modules()
        if path in wanted
    ]
    with torch.no_grad():
        network(torch.from_numpy(inputs))
    for handle in handles:
        handle.remove()
    return [found[path] for path in paths]


def as_rows(value, shape):
    """Return a layer's output as rows in the order of a flattened (height, width, channels)."""
    if value.ndim == 4 and value.shape[1:] != shape:
        value = value.transpose(0, 2, 3, 1)
    if value.ndim == 3:  # tokens: without those that are no patches
        value = value[:, value.shape[1] - int(np.prod(shape[:-1])) :]
    return value.reshape(len(value), -1)


def distance(values, reference):
    """Largest difference, relative to the largest value, of two batches."""
    return float(np.abs(values - reference).max() / np.abs(reference).max())


def compute(model, layers, size, photos):
    """Return the features of each layer as this package computes them, and the shapes."""
    options = {"preprocessing": "torch", "input_size": size}
    cnn = CNNFeatureTransformer(model, layers, "flatten", **options)
    rows = cnn.fit_transform(photos)
    ends = np.cumsum([int(np.prod(shape)) for shape in cnn.feature_shapes_])
    return np.split(rows, ends[:-1], axis=1), cnn.feature_shapes_


def compare(network, layers, size, photos):
    """Return one record per layer."""
    inputs = prepare(photos)
    computed, shapes = compute(network, layers, size, photos)
    expected = run_torch(network, layers, inputs)
    exact = run_torch(copy.deepcopy(network).double(), layers, inputs.astype(np.float64))
    records = []
    for layer, shape, ours, torchs, true in zip(
        layers, shapes, computed, expected, exact, strict=True
    ):
        torchs, true = as_rows(torchs, shape), as_rows(true, shape)
        records.append(
            {
                "layer": layer,
                "shape": list(shape),
                "difference": distance(ours, torchs),
                "ours to float64": distance(ours, true),
                "PyTorch to float64": distance(torchs, true),
            }
        )
    return records


def prepare(photos):
    """Return photographs as the network gets them, channels first."""
    return ((photos / 255 - _MEAN) / _STD).astype(np.float32).transpose(0, 3, 1, 2).copy()


def compare_onnx(network, size, photos, folder):
    """Export a network; return one record per layer of the file, against ONNX Runtime."""
    import onnx
    import onnxruntime
    import torch

    path = str(Path(folder) / "network.onnx")
    inputs = prepare(photos)
    torch.onnx.export(network, (torch.from_numpy(inputs[:1]),), path, dynamo=True, verbose=False)
    layers = choose_layers(path)
    computed, shapes = compute(path, layers, None, photos)
    model = onnx.load(path)
    tensors = {node.name: node.output[0] for node in model.graph.node}
    names = [tensors.get(layer, layer) for layer in layers]
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    name = session.get_inputs()[0].name
    singly = [session.run(names, {name: image[np.newaxis]}) for image in inputs]
    expected = [np.concatenate(values) for values in zip(*singly, strict=True)]
    return [
        {"layer": layer, "difference": distance(ours, as_rows(values, shape))}
        for layer, shape, ours, values in zip(layers, shapes, computed, expected, strict=True)
    ]


def check(name):
    """Return a record of one network."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SKLEARN_CNNFEAT_HOME"] = folder
        network, size = build(name)
        photos = make_photos(size)
        scale_weights(network)
        layers = choose_layers(CNNFeatureTransformer(network, input_size=size))
        record = {"network": name, "size": size, "statistics": "random"}
        record["layers"] = compare(network, layers, size, photos)
        if max(row["PyTorch to float64"] for row in record["layers"]) > LIMIT / 4:
            record["ill-conditioned"] = record["layers"]
            take_statistics(network, prepare(make_parts(size)))
            record["statistics"] = "of the photographs"
            record["layers"] = compare(network, layers, size, photos)
        if name in EXPORTED:
            record["onnx"] = compare_onnx(network, size, photos, folder)
    return record


# --- the report -----------------------------------------------------------------------------------


def worst(record, part="layers"):
    """Return the largest difference of a record; None where it has none."""
    return max((row["difference"] for row in record.get(part, [])), default=None)


def show(record):
    """Print the lines of the table that belong to one network."""
    if "error" in record:
        print(f"{record['network']:<34} {record['error']}", flush=True)
        return
    for i, row in enumerate(record["layers"]):
        line = f"{record['network'] if i == 0 else '':<34} {row['layer'][-30:]:<30}"
        columns = ("difference", "ours to float64", "PyTorch to float64")
        line += "".join(f" {row[column]:9.1e}" for column in columns)
        if i == 0 and "onnx" in record:
            line += f" {worst(record, 'onnx'):9.1e}"
        print(line + ("" if row["difference"] <= LIMIT else "   <-- beyond the limit"), flush=True)


def main():
    """Run from the command line."""
    wanted, report = begin_series(__doc__, check, REPORT)
    everything = [name for names in FAMILIES.values() for name in names]
    missing = [n for n in everything if "layers" not in report["networks"].get(n, {})]
    report["limit"] = LIMIT
    print(
        f"{'network':<34} {'layer':<30} {'PyTorch':>9} {'float64':>9} {'torch 64':>9} {'ONNX':>9}"
    )
    for name in wanted or missing:
        record = run_alone(__file__, name)
        show(record)
        report["networks"][name] = record
        REPORT.write_text(json.dumps(report, indent=1, sort_keys=True) + "\n")
    records = [report["networks"][name] for name in everything if name in report["networks"]]
    failed = [record["network"] for record in records if "error" in record]
    beyond = [
        record["network"]
        for record in records
        if any((worst(record, part) or 0) > LIMIT for part in ("layers", "onnx"))
    ]
    print(f"{len(records)} networks, beyond {LIMIT:.0e}: {beyond}, failed: {failed}")
    sys.exit(bool(beyond or failed))


if __name__ == "__main__":
    main()
