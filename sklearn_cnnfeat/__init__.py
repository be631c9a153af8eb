"""Features of any layer of any convolutional network, for scikit-learn.

The public names are in ``__init__.pyi``, where editors look for them as well; each is imported when
it is first used, so that the command line answers at once.
"""

import lazy_loader

_import_name, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name):
    if name != "__version__":
        from sklearn_cnnfeat._versions import check_loaded

        check_loaded()
        return _import_name(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("sklearn-cnnfeat")
    except PackageNotFoundError:  # run from its source, not installed
        return "0+unknown"
