"""A kernel image without its compression, which takes software emulation 3 s to undo. Pure."""

import lzma
import struct


def decompressed(image: bytes) -> bytes:
    """Return the ELF file in a bzImage; the image itself if it is compressed otherwise than by xz.

    QEMU boots both. The header is that of Documentation/x86/boot.rst: setup_sects at 0x1f1,
    payload_offset and payload_length at 0x248 (boot protocol 2.08).
    """
    setup_sectors = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if not payload.startswith(b"\xfd7zXZ\x00"):
        return image
    return lzma.LZMADecompressor().decompress(payload)  # A length follows; it is left alone.
