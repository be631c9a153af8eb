"""Networks of timm by name: weights, the size of images, preprocessing and layers."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from sklearn_cnnfeat._network.spec import Resizing
from sklearn_cnnfeat._network.torch_conversion import convert_module
from sklearn_cnnfeat._network.torch_models import import_torch, resizing_of
from sklearn_cnnfeat.exceptions import WeightsNotFoundError

PREFIX = "timm/"
# Folders that are searched for weights, separated as in PATH.
_VARIABLE = "SKLEARN_CNNFEAT_WEIGHTS"
# The only format of weights that holds numbers and nothing else.
_FILE = "model.safetensors"


def import_timm():
    import_torch()
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "Networks whose names begin with 'timm/' need timm: "
            'pip install "sklearn-cnnfeat[timm]".'
        ) from error
    return timm


@dataclass(frozen=True)
class TimmFacts:
    """What timm says about a network and its pretrained weights."""

    # Without the prefix: architecture and tag, "resnet50.a1_in1k".
    name: str
    # Height, width and channels of the images.
    size: tuple
    # For pixels on 0-1.
    mean: tuple
    std: tuple
    resizing: Resizing
    # Repository at Hugging Face; None where there are no weights.
    repository: str | None


def is_timm_name(model):
    """Whether `model` names a network of timm."""
    return isinstance(model, str) and model.startswith(PREFIX)


def timm_facts(model):
    """Return what timm says about the network ``model="timm/..."``."""
    timm = import_timm()
    name = _known_name(timm, model)
    config = timm.models.get_pretrained_cfg(name)
    data = timm.data.resolve_data_config({}, pretrained_cfg=config.to_dict())
    tag = f".{config.tag}" if config.tag else ""
    channels, height, width = data["input_size"]
    return TimmFacts(
        name=name.partition(".")[0] + tag,
        size=(height, width, channels),
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        resizing=resizing_of(data),
        repository=config.hf_hub_id if config.has_weights else None,
    )


def _known_name(timm, model):
    name = model.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=4, cutoff=0.4)
        hint = f" Nearest names: {', '.join(repr(PREFIX + near) for near in close)}."
        raise ValueError(
            f"model={model!r} is not a network of timm {timm.__version__}.{hint if close else ''} "
            "list_models('timm/*') lists all of them."
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"model={model!r}: timm {timm.__version__} has no weights {tag!r} of {architecture!r}. "
            f"There are {', '.join(map(repr, tags)) or 'none'}."
        )
    return name


def list_timm_models(pattern):
    """Return the names of timm's networks that fit a pattern such as ``"timm/convnext*"``.

    Those with pretrained weights come with their tags, ``"timm/convnext_tiny.fb_in1k"``.
    """
    timm = import_timm()
    return [
        PREFIX + name for name in timm.list_models(pattern.removeprefix(PREFIX), pretrained=True)
    ]


# --- weights --------------------------------------------------------------------------------------


def find_timm_weights(facts):
    """Look for the pretrained weights of a network on this machine; download nothing.

    Returned is their path, or None, and the places where they were looked for.
    """
    if facts.repository is None:
        return None, []
    places = []
    cache = _cache_folder()
    found = _in_cache(cache, facts.repository)
    places.append(str(cache / _repository_folder(facts.repository)))
    for folder in filter(None, os.environ.get(_VARIABLE, "").split(os.pathsep)):
        if found:
            break
        folder = Path(folder).expanduser()
        places.append(f"{folder} ({_VARIABLE})")
        found = _in_cache(folder, facts.repository) or _in_folder(folder, facts)
    if not os.environ.get(_VARIABLE):
        places.append(f"folders that the environment variable {_VARIABLE} names: it is not set")
    return found, places


def _cache_folder():
    """Return the folder where Hugging Face keeps what it has downloaded."""
    # By the variables that huggingface_hub reads, for importing it takes half a second.
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))).expanduser()


def _repository_folder(repository):
    return "models--" + repository.replace("/", "--")


def _in_cache(folder, repository):
    """Return the newest weights of a repository in a folder that is laid out as the cache is."""
    snapshots = folder / _repository_folder(repository) / "snapshots"
    files = [path for path in snapshots.glob(f"*/{_FILE}") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_mtime, default=None)


def _in_folder(folder, facts):
    for path in (folder / f"{facts.name}.safetensors", folder / facts.name / _FILE):
        if path.is_file():
            return path
    return None


def fetch_timm_weights(facts):
    """Return the file of the pretrained weights, downloaded where it is missing."""
    path, places = find_timm_weights(facts)
    if path is not None:
        return path
    if facts.repository is None:
        raise WeightsNotFoundError(
            f"There are no pretrained weights of '{PREFIX}{facts.name}' at Hugging Face. Choose "
            f"another tag (list_models('{PREFIX}{facts.name.partition('.')[0]}*') lists them), "
            "weights='path/to/file.safetensors' for weights of your own, or weights=None for "
            "random ones."
        )
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(facts.repository, _FILE))
    except Exception as error:  # of the network, the server, or the settings of Hugging Face
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    raise WeightsNotFoundError(
        f"The pretrained weights of '{PREFIX}{facts.name}' are not on this machine and could not "
        f"be downloaded ({problem}).\n"
        f"  file    {_FILE}\n"
        f"  from    https://huggingface.co/{facts.repository}/resolve/main/{_FILE}\n"
        f"  save as {facts.name}.safetensors\n"
        f"  put in  a folder that the environment variable {_VARIABLE} names\n"
        + "".join(f"  looked in  {place}\n" for place in places)
        + "Other choices: weights='path/to/file.safetensors' for weights of your own, "
        "weights=None for random ones."
    )


# --- networks -------------------------------------------------------------------------------------


def build_timm(facts, weights=None, seed=None):
    """Return a network of timm in evaluation mode.

    `weights` is a file (.safetensors); None stands for random ones, of `seed`.
    """
    timm, torch = import_timm(), import_torch()
    if weights is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed or 0)
            return timm.create_model(facts.name.partition(".")[0]).eval()
    path = Path(weights)
    if path.suffix != ".safetensors":
        raise ValueError(
            f"weights={str(path)!r} is not a .safetensors file. Other files of PyTorch are "
            "pickles, which can hold code. Where you trust it: safetensors.torch.save_file("
            "torch.load(path), 'name.safetensors')."
        )
    try:
        return timm.create_model(
            facts.name, pretrained=True, pretrained_cfg_overlay={"file": str(path)}
        ).eval()
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"The weights in {str(path)!r} do not fit '{PREFIX}{facts.name}': {line}."
        ) from error


def _resizer(facts, network):
    """Return what makes the network for another size, where it is built for one size."""
    if not hasattr(network, "set_input_size"):
        return None
    timm, torch = import_timm(), import_torch()

    def resize(height, width):
        with torch.device("meta"):
            other = timm.create_model(facts.name.partition(".")[0], img_size=(height, width))
        return other.eval()

    return resize


def convert_timm(facts, weights=None, seed=None, input_size=None):
    """Return a network of timm as a `Converted`; parameters are those of `open_timm`."""
    network, size, resize = open_timm(facts, weights, seed, input_size)
    return convert_module(network, size, f"'{PREFIX}{facts.name}'", resize)


def open_timm(facts, weights=None, seed=None, input_size=None):
    """Return a network of timm, height, width and channels of its images, and its other sizes.

    An `input_size` of None is the size that the weights were trained for. The other sizes are None,
    or a function as for `list_module_layers`.
    """
    network = build_timm(facts, weights, seed)
    height, width, channels = facts.size
    is_other = input_size is not None and tuple(input_size) != (height, width)
    # Networks that are built for one size have tables of positions, which timm interpolates.
    if is_other and hasattr(network, "set_input_size"):
        network.set_input_size(tuple(input_size))
    return network, (*(input_size or (height, width)), channels), _resizer(facts, network)
