"""xmodal: image-text matching as one living package.

Two towers embed, a head compares, an objective judges. Importing xmodal loads torch and nothing heavier; the rest
(`xmodal.model`, `xmodal.data`, `xmodal.training`, ...) is imported where it is used.
"""

__version__ = "0.1.0"
