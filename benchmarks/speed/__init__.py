"""Times as ratios within one run, and as processor seconds."""
