"""Features of any layer of any convolutional network, for scikit-learn.

The public names are in ``__init__.pyi``, where editors look for them as well; each is imported when
it is first used, so that the command line answers at once.
"""

import lazy_loader

__version__ = "0.1.0.dev0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
