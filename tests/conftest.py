"""Set before anything imports torch, here and in the processes that tests start."""

import os

# There is a worker for each core: with a thread for each core as well, they would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
