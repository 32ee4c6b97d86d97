"""What torch's own host code chooses and allocates for attention, recorded without a GPU.

``python -m tests.cuda_attention.record --python ENV`` records anew; see ``benchmarks/rehearsal`` for how
torch runs without a GPU. No kernel runs there, so that only what data does not decide is recorded.
"""
