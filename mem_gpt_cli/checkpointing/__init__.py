"""Which activations are computed again in backward, or wait in the host's memory, not on the device."""
