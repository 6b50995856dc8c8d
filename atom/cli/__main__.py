"""`python -m atom.cli` is `atom`."""

import sys

from atom.cli.main import main

sys.exit(main())
