"""`python -m spikeinterface_huidurep`: the same as the command `huidurep`."""

import sys

from spikeinterface_huidurep.cli import main

if __name__ == "__main__":
    sys.exit(main())
