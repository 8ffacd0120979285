"""`python -m techflow_provider`."""

import sys

from techflow_provider.cli import main

if __name__ == "__main__":
    sys.exit(main(program="python -m techflow_provider"))
