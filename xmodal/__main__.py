"""`python -m xmodal` is `xmodal`."""

from xmodal.cli import main

main()
