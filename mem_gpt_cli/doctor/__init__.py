"""What is installed, what works, which GPUs there are, and what those take beside torch's allocator."""
