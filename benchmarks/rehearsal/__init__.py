"""A rehearsal: the CUDA build of torch without a GPU, over a driver that only keeps books."""
