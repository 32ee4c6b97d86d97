"""What CUDA does otherwise than the CPU, rule by rule: the dry run steers by these."""
