"""The end of a run for which the memory does not suffice."""

from __future__ import annotations

from mem_gpt_cli.errors import GateError


class OutOfMemory(GateError):  # noqa: N818  (named as torch.cuda.OutOfMemoryError is spoken of)
    """No memory for a request, even after everything cached was given back; all figures in bytes.

    ``attempted`` is what the driver was asked for, which torch's message names as "Tried to allocate";
    ``allocated`` and ``reserved`` are what was left of them; ``capacity`` is ``None`` where it is not known.
    """

    def __init__(
        self,
        *,
        requested: int,
        attempted: int,
        allocated: int,
        reserved: int,
        capacity: int | None,
        retries: int,
    ) -> None:
        limit = "" if capacity is None else f" of {capacity:,}"
        super().__init__(
            f"out of memory: {requested:,} bytes were asked for, {allocated:,} are allocated and "
            f"{reserved - allocated:,} reserved but unallocated{limit}"
        )
        self.requested = requested
        self.attempted = attempted
        self.allocated = allocated
        self.reserved = reserved
        self.reserved_but_unallocated = reserved - allocated
        self.capacity = capacity
        self.retries = retries
