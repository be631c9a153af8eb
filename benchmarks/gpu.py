"""PyTorch networks on this machine's GPU: this package against a plain DataLoader loop.

Files to features, and the network alone, in images a second, for ResNet50, VGG16 and ViT-S/16 with
random weights. Without a GPU everything runs on the CPU, which shows only that it runs.
"""

import time

import numpy as np
from _common import (
    cycled,
    describe_machine,
    find_photos,
    make_axes,
    make_parser,
    plot_bars,
    print_machine,
    print_table,
    save,
    show,
    summarize,
)
from PIL import Image

from sklearn_cnnfeat import CNNFeatureTransformer

# Network and layer, which PyTorch has under these names.
_NETWORKS = {
    "resnet50": "layer4",
    "vgg16": "features",
    "vit_small_patch16_224": "norm",
}
_SIZE = 224


class _Photos:
    """What a DataLoader takes: a photograph resized as `CNNFeatureTransformer` does by default."""

    def __init__(self, paths):
        self._paths = paths

    def __len__(self):
        return len(self._paths)

    def __getitem__(self, i):
        with Image.open(self._paths[i]) as image:
            pixels = image.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BILINEAR)
        return np.asarray(pixels, np.float32).transpose(2, 0, 1) / 255


class Plain:
    """The loop that people write: DataLoader with workers, `no_grad`, a hook, the mean."""

    def __init__(self, network, layer, precision, batch_size, n_workers):
        import torch

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._dtype = getattr(torch, precision)
        self._network = network.to(self.device, self._dtype)
        self._options = {"batch_size": batch_size, "num_workers": n_workers}
        self._found = []
        part = network.get_submodule(layer)
        part.register_forward_hook(lambda _, __, output: self._found.append(output))

    def compute(self, images):
        """Return the pooled features of a batch on the device."""
        import torch

        with torch.no_grad():
            self._network(images.to(self.device, self._dtype, non_blocking=True))
        output = self._found.pop()
        return output.mean((2, 3)) if output.ndim == 4 else output[:, 1:].mean(1)

    def run(self, paths):
        """Compute files to features."""
        import torch

        loader = torch.utils.data.DataLoader(
            _Photos(paths), pin_memory=self.device == "cuda", **self._options
        )
        return np.concatenate([self.compute(batch).float().cpu().numpy() for batch in loader])


def make_network(name):
    """Return a network of timm with random weights."""
    import timm

    return timm.create_model(name, num_classes=10).eval()


def measure_alone(plain, n_images, batch_size):
    """Return the images a second of the network on batches that are on the device already."""
    import torch

    images = torch.rand(batch_size, 3, _SIZE, _SIZE, device=plain.device)
    plain.compute(images).cpu()
    begin = time.perf_counter()
    for _ in range(max(1, n_images // batch_size)):
        rows = plain.compute(images)
    rows.cpu()
    return max(1, n_images // batch_size) * batch_size / (time.perf_counter() - begin)


def main():
    """Compare, print, write."""
    parser = make_parser("gpu", __doc__, rounds=3)
    parser.add_argument("--images", type=int, default=4096, help="photographs a round")
    parser.add_argument("--batch-size", type=int, default=128, help="of the plain loop")
    parser.add_argument("--workers", type=int, default=8, help="processes of the DataLoader")
    parser.add_argument("--precision", nargs="+", default=["float32", "float16", "bfloat16"])
    options = parser.parse_args()
    machine = describe_machine()
    print_machine(machine)
    import torch

    machine["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    paths = cycled(find_photos(options.photos), options.images)
    table, results = [], {}
    for name, layer in _NETWORKS.items():
        for precision in options.precision:
            network = make_network(name)
            ours = CNNFeatureTransformer(
                network,
                layer,
                "avg",
                input_size=_SIZE,
                preprocessing="rescale",
                engine="torch",
                precision=precision,
            ).fit(paths[:1])
            plain = Plain(make_network(name), layer, precision, options.batch_size, options.workers)
            rates = {"ours": [], "DataLoader": [], "network alone": []}
            for _ in range(options.rounds):
                for contender, run in (("ours", ours.transform), ("DataLoader", plain.run)):
                    run(paths[: options.batch_size])
                    begin = time.perf_counter()
                    run(paths)
                    rates[contender].append(len(paths) / (time.perf_counter() - begin))
                alone = measure_alone(plain, options.images, options.batch_size)
                rates["network alone"].append(alone)
            result = {contender: summarize(values) for contender, values in rates.items()}
            results[f"{name} {precision}"] = result
            table.append([name, precision, *(show(np.median(values)) for values in rates.values())])
    print(f"images a second on {machine['device']}:")
    print_table(["network", "precision", "ours", "DataLoader", "network alone"], table)
    figure, axes = make_axes(1, 8, 5)
    labels = [f"{row[0]}, {row[1]}" for row in table]
    plot_bars(
        np.ravel(axes)[0],
        labels,
        [float(row[2].replace(",", "")) for row in table],
        None,
        "Files to features, ours",
        "images a second",
    )
    save(options, machine, {"networks": results}, figure)


if __name__ == "__main__":
    main()
