"""``python -m hvp_engine`` is ``hvp-engine``."""

from hvp_engine.cli import main

main()
