"""Downloads a URL straight into a file: the bytes of the body never visit user space.

    python examples/download.py http://example.org/file.iso file.iso

What https:// names is copied: it has to be decrypted.
"""

from gevent import monkey

monkey.patch_all()

import gsplice

gsplice.patch_all()

import shutil
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import urlopen


def url(text):
    if urlsplit(text).scheme not in ("http", "https"):
        raise ValueError
    return text


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("url", type=url, metavar="URL", help="what to download")
    parser.add_argument("path", metavar="FILE", help="where to put what it names")
    arguments = parser.parse_args()
    try:
        with urlopen(arguments.url) as response, open(arguments.path, "wb") as file:
            shutil.copyfileobj(response, file)
            size = file.tell()
            if response.length:
                raise HTTPException(f"the connection ended {response.length:,} bytes too early")
    except (OSError, HTTPException) as error:  # urllib's as well
        sys.exit(f"cannot download {arguments.url}: {error}")
    share = gsplice.stats().spliced / max(size, 1)
    print(f"{size:,} bytes, {share:.0%} of them spliced")
