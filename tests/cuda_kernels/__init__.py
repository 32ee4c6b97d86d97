"""What CUDA's kernels allocated inside operators, recorded from torch's own host code.

``python -m tests.cuda_kernels.record --python ENV`` records anew; see ``benchmarks/rehearsal`` for how torch
runs without a GPU. No kernel runs there, so that only what data does not decide is recorded.
"""
