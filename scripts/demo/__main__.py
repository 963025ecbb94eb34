"""`python -m scripts.demo`."""

from scripts.demo.pipeline import main
from xmodal.entry import run_program

run_program(main, prog="python -m scripts.demo")
