"""Which activations are computed again in backward, or wait in the host's memory, instead of on the device."""
