"""``python -m mem_gpt_cli`` is ``memgpt``."""

from mem_gpt_cli.cli.main import main

if __name__ == "__main__":
    main()
