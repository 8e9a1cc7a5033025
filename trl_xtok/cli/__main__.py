"""`python -m trl_xtok.cli`, which is how Accelerate starts the training."""

import sys

from .dispatch import main


sys.exit(main())
