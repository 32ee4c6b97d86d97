"""What `memgpt finetune` promises, measured."""
