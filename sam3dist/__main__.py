"""`python -m sam3dist` is the command line."""

import sys

from sam3dist.cli import main

sys.exit(main())
