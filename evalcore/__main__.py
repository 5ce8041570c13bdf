"""``python -m evalcore``."""

from evalcore.cli import program

if __name__ == "__main__":
    program()
