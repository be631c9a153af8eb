"""Files of features: .npy with a table beside it, Parquet, Zarr. They know nothing of images.

A format *writes* a whole file from blocks of rows in bounded memory, under another name, and
*reads* one, or some rows of it. In each file stands a manifest, which says what its rows are; a
file without one is not ours.
"""

from sklearn_cnnfeat._extract.formats.npy import NpyFormat
from sklearn_cnnfeat._extract.formats.parquet import ParquetFormat
from sklearn_cnnfeat._extract.formats.zarr import ZarrFormat

FORMATS = {form.name: form for form in (ParquetFormat(), NpyFormat(), ZarrFormat())}
