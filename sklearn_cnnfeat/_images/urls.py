"""Files that are elsewhere: URLs of any file system that fsspec knows. Its only importer."""

import errno
import re

# Of a letter alone, it would be a drive. Chained ones begin with "name::".
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|://)")


def is_url(path):
    """Tell whether a path is a URL, such as ``"s3://bucket/photo.jpg"``.

    Examples
    --------
    >>> [is_url(path) for path in ("s3://bucket/photo.jpg", "photos/1.jpg", "C:/photos/1.jpg")]
    [True, False, False]
    """
    return "://" in path and _URL.match(path) is not None


def check_urls(urls):
    """Raise where a kind of URL cannot be read here; whether the files exist is not asked.

    Parameters
    ----------
    urls : list of str
        What is to be read.

    Raises
    ------
    ImportError
        If a package is missing; the message says how it is installed.
    ValueError
        If fsspec does not know the kind.
    """
    for url in {url.partition("://")[0]: url for url in urls}.values():
        _locate(url)


def read_url(url, most_bytes):
    """Return the content of the file at `url`.

    Parameters
    ----------
    url : str
        Where it is.
    most_bytes : int
        A larger file is refused. No more than this and one byte is asked for.

    Raises
    ------
    ImportError
        As `check_urls`.
    OSError
        If the file cannot be read.
    ValueError
        If it is too large.
    """
    system, path = _locate(url)
    try:
        content = system.cat_file(path, end=most_bytes + 1)
    except FileNotFoundError as error:
        # Some file systems say the name only.
        raise FileNotFoundError(errno.ENOENT, "there is no such file", url) from error
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return content


def _locate(url):
    """Return the file system of a URL, and the path in it."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(
            f'{url!r} is a URL, which is read with fsspec: pip install "sklearn-cnnfeat[fsspec]"'
        ) from error
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise ImportError(f"{url!r} needs a package that is not installed: {error}") from error
    except ValueError as error:
        raise ValueError(f"{url!r} cannot be read: {error}") from error
