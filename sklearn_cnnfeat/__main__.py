"""``python -m sklearn_cnnfeat`` is ``cnnfeat``."""

import sys

from sklearn_cnnfeat._cli import main

if __name__ == "__main__":
    sys.exit(main())
