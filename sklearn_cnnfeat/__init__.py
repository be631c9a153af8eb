"""Features of any layer of any convolutional network, for scikit-learn."""

from sklearn_cnnfeat._cache import CacheWarning, FeatureCache
from sklearn_cnnfeat._folders import load_image_folder, load_image_table
from sklearn_cnnfeat._inspection._decision import decision_map
from sklearn_cnnfeat._inspection._displays import (
    DecisionMapDisplay,
    FeatureMapDisplay,
    FilterDisplay,
    LayerScoreDisplay,
)
from sklearn_cnnfeat._inspection._summaries import filter_summary, layer_summary
from sklearn_cnnfeat._network._zoo import list_models
from sklearn_cnnfeat._search import layer_report, layer_scores, precompute
from sklearn_cnnfeat._transformer import CNNFeatureTransformer

__version__ = "0.1.0.dev0"

__all__ = [
    "CNNFeatureTransformer",
    "CacheWarning",
    "DecisionMapDisplay",
    "FeatureCache",
    "FeatureMapDisplay",
    "FilterDisplay",
    "LayerScoreDisplay",
    "decision_map",
    "filter_summary",
    "layer_report",
    "layer_scores",
    "layer_summary",
    "list_models",
    "load_image_folder",
    "load_image_table",
    "precompute",
]
