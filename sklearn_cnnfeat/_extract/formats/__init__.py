"""Files of features: .npy with a table beside it, Parquet, Zarr. Formats do not depend on images.

A format *writes* a whole file from blocks of rows in bounded memory, under another name, and
*reads* one, or some rows of it. Each file has a manifest, which describes its rows; a file without
one is not of `extract`.
"""

from sklearn_cnnfeat._extract.formats.npy import NpyFormat
from sklearn_cnnfeat._extract.formats.parquet import ParquetFormat
from sklearn_cnnfeat._extract.formats.zarr import ZarrFormat

FORMATS = {form.name: form for form in (ParquetFormat(), NpyFormat(), ZarrFormat())}
