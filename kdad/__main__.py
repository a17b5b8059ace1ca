"""`python -m kdad`."""

import sys

from kdad.cli import main

if __name__ == "__main__":
    sys.exit(main())
