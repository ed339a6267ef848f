"""`python -m gradstep` is `gradstep`."""

from gradstep.cli import main

main()
