def kernel_buffers():
    return None
