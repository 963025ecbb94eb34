"""The programs of `xmodal prepare`.

In a checkout they lie in the folder `preprocess` beside this package, where `python -m preprocess.regions` finds them,
and are found as `xmodal.prepare.regions` all the same. A wheel has that folder in the place of this one.
"""

from pathlib import Path

__path__.append(str(Path(__file__).parents[2] / "preprocess"))
