"""Set before anything imports torch, here and in the processes that tests start; and a lighter collector."""

import gc
import os

import pytest

# There is a worker for each core: with a thread for each core as well, they would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """What is there by now stays: each lens collects garbage, and would go through all of torch again."""
    gc.collect()
    gc.freeze()
