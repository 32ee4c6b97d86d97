"""What is measured: accuracy, coverage, speed. Raw results lie under ``results/``."""
