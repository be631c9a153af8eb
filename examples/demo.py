"""Which layer of a network gives an SVM the best features? A search, from start to end, offline.

    python examples/demo.py [FOLDER FOR THE PICTURES]

It takes about a minute on two cores. Installed packages bring the demo along: this is
``cnnfeat demo``, and what it does is in ``sklearn_cnnfeat/_demo.py``.
"""

import sys

from sklearn_cnnfeat._cli import main
from sklearn_cnnfeat._demo import draw_photos

__all__ = ["draw_photos"]

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
