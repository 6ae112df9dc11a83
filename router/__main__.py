"""`python -m router` is `warmroute`."""

from router.cli import main

main()
