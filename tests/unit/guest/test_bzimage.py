"""A compressed kernel is taken out of its image; what is not understood stays as it is."""

import lzma
import struct

from guest.bzimage import decompressed

SETUP_SECTORS = 3


def bzimage(payload):
    """Return an image as Documentation/x86/boot.rst describes it; a word follows the payload."""
    offset = 100
    image = bytearray((SETUP_SECTORS + 1) * 512 + offset)
    image[0x1F1] = SETUP_SECTORS
    struct.pack_into("<II", image, 0x248, offset, len(payload) + 4)
    return bytes(image) + payload + b"size" + b"more"


def test_kernel_compressed_by_xz_is_taken_out():
    assert decompressed(bzimage(lzma.compress(b"\x7fELF kernel"))) == b"\x7fELF kernel"


def test_other_compressions_are_left_to_the_boot():
    image = bzimage(b"\x1f\x8b something")

    assert decompressed(image) == image
