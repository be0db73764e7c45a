"""What gzip, bzip2 and xz make of the same bytes, in bits per character."""

import bz2
import gzip
import lzma

COMPRESSORS = {
    "gzip -9": lambda data: gzip.compress(data, 9, mtime=0),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


def bits_per_character(data):
    """{compressor: 8 compressed size / size}.

    Each compresses these bytes alone, with its headers, and is free to use all of them; it has seen
    no training text.
    """
    data = bytes(data)
    return {name: 8 * len(compress(data)) / len(data) for name, compress in COMPRESSORS.items()}
