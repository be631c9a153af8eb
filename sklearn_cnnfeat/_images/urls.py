"""Images behind URLs of the file systems that fsspec knows."""

import errno
import os
import re
import stat

# A single letter before the colon is a Windows drive. "name::" begins a chain of file systems.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::|://)")
_LOCAL = ("file://", "local://")
_HTTP = ("http", "https")

# The protocols that an untrusted list of URLs may use. Others can open local files and sockets of
# programs (reference, git), log in with the user's keys (ssh) or copy whole files without a limit
# (simplecache).
PROTOCOLS = (
    *_HTTP,
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf"),
    *("zip", "memory", "file", "local"),
)
# Environment variable with further protocols, separated by commas.
_MORE_PROTOCOLS = "CNNFEAT_URL_PROTOCOLS"


def is_url(path):
    """Return whether a path is a URL, such as ``"s3://bucket/photo.jpg"``.

    Examples
    --------
    >>> [is_url(path) for path in ("s3://bucket/photo.jpg", "photos/1.jpg", "C:/photos/1.jpg")]
    [True, False, False]
    """
    return "://" in path and _URL.match(path) is not None


def local_path(path):
    """Return the path that a local URL stands for, and every other path or URL unchanged.

    Examples
    --------
    >>> [local_path(path) for path in ("file:///photos/1.jpg", "s3://bucket/1.jpg", "1.jpg")]
    ['/photos/1.jpg', 's3://bucket/1.jpg', '1.jpg']
    """
    if not path[:8].lower().startswith(_LOCAL) or "::" in path:
        return path
    path = os.path.expanduser(path.partition("://")[2])
    # "file:///C:/photos" holds a path on Windows.
    return path[1:] if os.name == "nt" and re.match(r"/[A-Za-z]:", path) else path


def check_urls(urls):
    """Raise an error for URLs that cannot be read here; whether the files exist is not checked.

    `ImportError` names a missing package; `ValueError` is for a protocol that is unknown or not
    open.
    """
    for protocols, url in {_protocols(url): url for url in urls}.items():
        _check_protocols(protocols, url)


def read_url(url, most_bytes):
    """Return the content of the file at `url`; refuse one of more than `most_bytes`.

    At most this number of bytes and one buffer are read. Errors are those of `check_urls`, and
    `OSError` if the file cannot be read.
    """
    protocols = _protocols(url)
    _check_protocols(protocols, url)
    _check_archive(url)
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(url)
        if protocols[0] in _HTTP:
            content = _read_stream(system, path, most_bytes)
        else:
            content = system.cat_file(path, end=most_bytes + 1)
    except FileNotFoundError as error:
        # Some file systems give nothing but the name.
        raise FileNotFoundError(errno.ENOENT, "there is no such file", url) from error
    if len(content) > most_bytes:
        raise ValueError(f"it is larger than {most_bytes:,} bytes")
    return content


def _protocols(url):
    """Return the protocols of a URL, of a chain from the inside out: ("zip", "https")."""
    if "::" not in url:
        return (url.partition("://")[0],)
    *links, last = url.split("::")
    # A chain may end in a path.
    last = last if "://" in last else "file"
    return tuple(link.partition("://")[0] for link in (*links, last))


def _check_protocols(protocols, url):
    try:
        from fsspec.registry import get_filesystem_class
    except ImportError as error:
        raise ImportError(
            f'{url!r} is a URL, which is read with fsspec: pip install "sklearn-cnnfeat[fsspec]"'
        ) from error
    more = os.environ.get(_MORE_PROTOCOLS, "").replace(" ", "").split(",")
    for protocol in protocols:
        try:
            get_filesystem_class(protocol)
        except ImportError as error:
            raise ImportError(f"{url!r} needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise ValueError(f"{url!r} cannot be read: {error}") from error
        if protocol not in PROTOCOLS and protocol not in more:
            raise ValueError(
                f"{url!r} was not read, because the protocol {protocol!r} is not among those that "
                f"a list of URLs may use: {', '.join(PROTOCOLS)}. If you trust whoever wrote the "
                f"list, set the environment variable {_MORE_PROTOCOLS}={protocol}, or read the "
                "files yourself and pass their bytes."
            )


def _check_archive(url):
    """Raise an error if a chain of file systems starts at a device or a pipe."""
    if "::" not in url:
        return
    last = local_path(url.rpartition("::")[2])
    if not is_url(last) and not stat.S_ISREG(os.stat(last).st_mode):
        raise ValueError(f"{last!r} is not a regular file")


def _read_stream(system, path, most_bytes):
    """Return at most `most_bytes` and one byte of a file behind HTTP.

    Servers may ignore the requested range, so the answer is read in pieces.
    """
    content = bytearray()
    # Giving fsspec a size saves the request by which it would ask for it.
    with system.open(path, "rb", block_size=0, size=1) as file:
        while len(content) <= most_bytes and (
            piece := file.read(min(_PIECE, most_bytes + 1 - len(content)))
        ):
            content += piece
    return bytes(content)


_PIECE = 2**20
