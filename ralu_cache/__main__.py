"""`python -m ralu_cache` is `ralu-cache`."""

import sys

from ralu_cache.cli import main

if __name__ == "__main__":
    sys.exit(main())
