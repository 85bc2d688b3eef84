"""``python -m jobworker.cli`` is ``jobworker-cli``."""

from jobworker.cli.main import main

main()
