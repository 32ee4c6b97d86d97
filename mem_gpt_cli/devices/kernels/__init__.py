"""What CUDA's kernels and libraries allocate, by sizes alone, without torch."""
