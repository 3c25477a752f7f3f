"""The images of requests, in anonymous shared memory (memfd) that the parent writes and the worker only reads."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class ImageWriter:
    """The parent's side. The memory grows with what is written at once and never shrinks."""

    def __init__(self) -> None:
        """Allocate nothing yet but the two descriptors. Raises OSError when there are none left."""
        self._fd = os.memfd_create("sqap_vla_image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Whoever could shrink it would end this process by SIGBUS at its next write.
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.reader_fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._memory: mmap.mmap | None = None

    def write(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Copy the images in, one after the other. Raises OSError when there is not enough memory."""
        size = sum(image.nbytes for image in images)
        if self._memory is None or len(self._memory) < size:
            os.ftruncate(self._fd, size)
            self._memory = mmap.mmap(self._fd, size)
        begin = 0
        for image in images:
            np.frombuffer(self._memory, np.uint8, image.nbytes, begin).reshape(image.shape)[...] = image
            begin += image.nbytes

    def close(self) -> None:
        """Give the memory and the descriptors back."""
        self._memory = None
        os.close(self._fd)
        os.close(self.reader_fd)


class ImageReader:
    """The worker's side, over the writer's `reader_fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._memory: mmap.mmap | None = None

    def read(self, sizes: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Return copies, [height, width, 3]: a policy may keep an image, and the parent overwrites the memory.

        sizes: (height, width) of each image, in the order in which they were written.
        """
        total = sum(3 * height * width for height, width in sizes)
        if self._memory is None or len(self._memory) < total:
            self._memory = mmap.mmap(self._fd, total, prot=mmap.PROT_READ)
        images, begin = [], 0
        for height, width in sizes:
            size = 3 * height * width
            images.append(np.frombuffer(self._memory, np.uint8, size, begin).reshape(height, width, 3).copy())
            begin += size
        return images
