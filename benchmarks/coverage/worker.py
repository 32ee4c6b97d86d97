"""Examines the model types that come in on standard input, one a line; answers one line of JSON for each."""

from __future__ import annotations

import json
import os
import sys
import warnings

from benchmarks.coverage.cell import examine


def main() -> None:
    # Model code and torch print what they like: the answers keep standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    import transformers

    transformers.logging.set_verbosity_error()
    for line in sys.stdin:
        print(json.dumps(examine(line.strip())), file=answers, flush=True)


if __name__ == "__main__":
    main()
