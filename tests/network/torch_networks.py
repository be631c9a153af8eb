"""Small PyTorch modules, and weights under which no layer is trivial."""

import torch
from torch import nn


def scale_weights(network, seed=0):
    """Give a network kernels scaled after He et al. and normalizations between 0.5 and 1.5."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in network.modules():
            for name, value in part.named_parameters(recurse=False):
                if value.ndim >= 2 and name.endswith("weight"):
                    deviation = (2 / value[0].numel()) ** 0.5
                    value.copy_(torch.randn(value.shape, generator=generator) * deviation)
                elif value.ndim == 1 and getattr(part, "weight", value).ndim == 1:
                    # Shifts as large as the means, so that ReLU leaves something.
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
            for name in ("running_mean", "running_var"):
                value = getattr(part, name, None)
                if value is not None:
                    value.copy_(0.5 + torch.rand(value.shape, generator=generator))
    return network.eval()


def take_statistics(network, pixels):
    """Give batch normalizations the means and variances of some images, as training leaves them."""

    def note(part, arguments):
        axes = [axis for axis in range(arguments[0].ndim) if axis != 1]
        variance, mean = torch.var_mean(arguments[0].double(), axes, correction=0)
        part.running_mean.copy_(mean)
        # Channels that hardly vary would have their rounding amplified.
        part.running_var.copy_(variance + 0.1 * variance.mean())

    handles = [
        part.register_forward_pre_hook(note)
        for part in network.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    with torch.no_grad():
        network(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    for handle in handles:
        handle.remove()
    return network


class Residual(nn.Module):
    """Convolutions with ReLU in place, a layer that is used twice, a sum and a dense layer."""

    def __init__(self, channels=3, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.5)
        self.unused = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.block(x) + x)
        return self.fc(self.dropout(self.pool(x).flatten(1)))


class Tokens(nn.Module):
    """A vision transformer with a class token and registers, for one size of images."""

    num_prefix_tokens = 3

    def __init__(self, width=20, size=(32, 48), patch=8):
        super().__init__()
        self.size = size
        self.patch = nn.Conv2d(3, width, patch, stride=patch)
        n_patches = size[0] // patch * (size[1] // patch)
        self.prefix = nn.Parameter(torch.randn(1, 3, width))
        self.position = nn.Parameter(torch.randn(1, n_patches + 3, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 30), nn.GELU(), nn.Linear(30, width))
        self.head = nn.Linear(width, 6)

    def forward(self, x):
        assert x.shape[2:] == self.size
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(len(x), -1, -1), x], 1) + self.position
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.mlp(x)
        return self.head(x[:, 0])


class CutPatches(nn.Module):
    """A vision transformer that cuts patches without a convolution, as NaFlexViT does."""

    num_prefix_tokens = 2

    def __init__(self, width=20, patch=8):
        super().__init__()
        self.patch = patch
        self.embed = nn.Linear(3 * patch * patch, width)
        self.prefix = nn.Parameter(torch.randn(1, 2, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        n, _, height, width = x.shape
        rows, columns = height // self.patch, width // self.patch
        x = x.reshape(n, 3, rows, self.patch, columns, self.patch).permute(0, 2, 4, 3, 5, 1)
        x = self.embed(x.reshape(n, rows * columns, -1))
        return self.norm(torch.cat([self.prefix.expand(n, -1, -1), x], 1))


class ChannelsLast(nn.Module):
    """Maps that are channels last inside, as in Swin."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, stride=4)
        self.norm = nn.LayerNorm(12)
        self.mlp = nn.Linear(12, 12)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        return self.mlp(self.norm(x)).mean((1, 2))


class ScaledBlock(nn.Module):
    """A block of ConvNeXt: a dense layer with channels last, and a scale of each channel."""

    def __init__(self, width=12):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, stride=4)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.dense = nn.Linear(width, width)
        self.gamma = nn.Parameter(torch.rand(width))
        self.end = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        x = self.patch(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.dense(y).permute(0, 3, 1, 2) * self.gamma.reshape(1, -1, 1, 1)
        return self.end(x + y)
