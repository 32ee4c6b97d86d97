"""The GPU's caching allocator, modelled: what it reserves for a sequence of allocations, and where it gives up."""
