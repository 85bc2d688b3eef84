"""``python -m jobworker.daemon``."""

from jobworker.daemon.main import main

main()
