"""The feature cache: rows on disk, found by what they depend on."""

from sklearn_cnnfeat._cache.feature_cache import FeatureCache
from sklearn_cnnfeat._cache.info import CacheInfo, CacheReport

__all__ = ["CacheInfo", "CacheReport", "FeatureCache"]
