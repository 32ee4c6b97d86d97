"""The command as a user meets it: how it starts, how it fails, what it prints where."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mem_gpt_cli import errors
from mem_gpt_cli._version import __version__
from mem_gpt_cli.cli import main as cli


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"memgpt {__version__}\n"
