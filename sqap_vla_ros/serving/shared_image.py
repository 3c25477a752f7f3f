"""The image of a request, in anonymous shared memory (memfd) that the parent writes and the worker only reads."""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np
from numpy.typing import NDArray


class ImageWriter:
    """The parent's side. The memory grows with the largest image and never shrinks."""

    def __init__(self) -> None:
        """Allocate nothing yet but the two descriptors. Raises OSError when there are none left."""
        self._fd = os.memfd_create("sqap_vla_image", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        # Whoever could shrink it would end this process by SIGBUS at its next write.
        fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        self.reader_fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._memory: mmap.mmap | None = None

    def write(self, image: NDArray[np.uint8]) -> None:
        """Copy the image in. Raises OSError when there is not enough memory."""
        if self._memory is None or len(self._memory) < image.nbytes:
            os.ftruncate(self._fd, image.nbytes)
            self._memory = mmap.mmap(self._fd, image.nbytes)
        np.frombuffer(self._memory, np.uint8, image.nbytes).reshape(image.shape)[...] = image

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

    def read(self, height: int, width: int) -> NDArray[np.uint8]:
        """Return a copy, [height, width, 3]: a policy may keep the image, and the parent overwrites the memory."""
        size = height * width * 3
        if self._memory is None or len(self._memory) < size:
            self._memory = mmap.mmap(self._fd, size, prot=mmap.PROT_READ)
        return np.frombuffer(self._memory, np.uint8, size).reshape(height, width, 3).copy()
