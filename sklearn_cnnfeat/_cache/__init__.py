"""The feature cache: rows on disk, found by what they depend on."""

from sklearn_cnnfeat._cache.feature_cache import CacheInfo, CacheReport, FeatureCache

__all__ = ["CacheInfo", "CacheReport", "FeatureCache"]
