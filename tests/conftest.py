"""Set before anything imports torch, here and in the processes that tests start."""

import gc
import os

# There is a worker for each core: with a thread for each core as well, they would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_finish() -> None:
    """Take what was imported out of the collector's rounds: each lens asks for one to know what is live."""
    gc.collect()
    gc.freeze()
