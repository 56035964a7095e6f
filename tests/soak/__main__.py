"""See `soak.py`."""

import sys

from tests.soak.soak import main

if __name__ == "__main__":  # the server of forks imports this file as well
    sys.exit(main())
