"""``python -m quantcfg`` is ``quantcfg``."""

from quantcfg.cli.main import program

if __name__ == "__main__":
    program()
