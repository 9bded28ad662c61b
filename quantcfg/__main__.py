"""``python -m quantcfg`` is ``quantcfg``."""

import sys

from quantcfg.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
