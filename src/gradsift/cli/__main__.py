"""``python -m gradsift.cli``."""

import sys

from gradsift.cli.entry import main

if __name__ == "__main__":
    sys.exit(main())
