"""What the allocator asks of the CUDA driver, and a driver that gives ascending addresses."""

from __future__ import annotations

from typing import Protocol

from mem_gpt_cli.allocator.sizes import LARGE_ROUNDING_BYTES, round_up

FIRST_ADDRESS = 1 << 40


class Driver(Protocol):
    """Gives and takes memory; ``None`` and ``False`` say that there is no more."""

    def malloc(self, nbytes: int) -> int | None:
        """The address of a new segment (``cudaMalloc``)."""

    def free(self, address: int, nbytes: int) -> None:
        """Take a segment back (``cudaFree``)."""

    def reserve(self, nbytes: int, page: int) -> int:
        """The address of a stretch to be mapped in pages (``cuMemAddressReserve``)."""

    def map(self, address: int, nbytes: int) -> bool:
        """Put memory behind addresses (``cuMemCreate`` and ``cuMemMap``)."""

    def unmap(self, address: int, nbytes: int) -> None:
        """Take the memory behind addresses back (``cuMemUnmap``)."""


class AscendingDriver:
    """Each segment above the one before; ``capacity`` bytes in all, or as many as one likes.

    The driver of a GPU gives memory in steps of 2 MiB, which is also what the allocator asks in.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.used = 0
        self._next = FIRST_ADDRESS

    def malloc(self, nbytes: int) -> int | None:
        """The next address, unless the capacity is spent."""
        return self.reserve(nbytes, LARGE_ROUNDING_BYTES) if self._take(nbytes) else None

    def free(self, address: int, nbytes: int) -> None:  # noqa: ARG002
        """Count the bytes as free again; the address is not given twice."""
        self.used -= nbytes

    def reserve(self, nbytes: int, page: int) -> int:  # noqa: ARG002
        """The next address."""
        address = self._next
        self._next += round_up(nbytes, LARGE_ROUNDING_BYTES)
        return address

    def map(self, address: int, nbytes: int) -> bool:  # noqa: ARG002
        """Whether the capacity has room."""
        return self._take(nbytes)

    def unmap(self, address: int, nbytes: int) -> None:  # noqa: ARG002
        """Count the bytes as free again."""
        self.used -= nbytes

    def _take(self, nbytes: int) -> bool:
        if self.capacity is not None and self.used + nbytes > self.capacity:
            return False
        self.used += nbytes
        return True
