"""The command line, ``cnnfeat``."""

from sklearn_cnnfeat._cli.program import main, program

__all__ = ["main", "program"]
