"""``python -m privopt``: floor 7, the same as the command ``privopt``."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
