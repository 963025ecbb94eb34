"""The commands of `xmodal`, a file each: a dataclass that tyro turns into options, and what is done with it."""
