"""``python -m evalcore``."""

from evalcore.cli import main

if __name__ == "__main__":
    main()
