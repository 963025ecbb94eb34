"""The page of `xmodal serve` in a browser: for tests, benchmarks and the picture in the README."""
