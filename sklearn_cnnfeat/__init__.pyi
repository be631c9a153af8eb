from ._cache import FeatureCache
from ._doctor import show_versions
from ._extract.extract import extract
from ._extract.load import load_features
from ._images.folders import load_image_folder, load_image_table
from ._inspection.channel_examples_display import ChannelExamplesDisplay
from ._inspection.decision import decision_map
from ._inspection.decision_map_display import DecisionMapDisplay
from ._inspection.embedding_display import EmbeddingDisplay
from ._inspection.explore import explore
from ._inspection.feature_map_display import FeatureMapDisplay
from ._inspection.filter_display import FilterDisplay
from ._inspection.layer_score_display import LayerScoreDisplay
from ._inspection.prediction_gallery_display import PredictionGalleryDisplay
from ._layer_scores import layer_report, layer_scores
from ._network.zoo import list_models
from ._precompute import precompute
from ._summaries import filter_summary, layer_summary
from ._transformer import CNNFeatureTransformer
from ._weights import pack_weights
from .exceptions import CacheWarning

__version__: str

__all__ = [
    "CNNFeatureTransformer",
    "CacheWarning",
    "ChannelExamplesDisplay",
    "DecisionMapDisplay",
    "EmbeddingDisplay",
    "FeatureCache",
    "FeatureMapDisplay",
    "FilterDisplay",
    "LayerScoreDisplay",
    "PredictionGalleryDisplay",
    "decision_map",
    "explore",
    "extract",
    "filter_summary",
    "layer_report",
    "layer_scores",
    "layer_summary",
    "list_models",
    "load_features",
    "load_image_folder",
    "load_image_table",
    "pack_weights",
    "precompute",
    "show_versions",
]
