"""The GPUs: which there are, what the driver tells of them, what they take beside torch's allocator."""
