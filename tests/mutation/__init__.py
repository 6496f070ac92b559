"""Small breakages of the package, one at a time in a copy of it, and whether the tests of its rooms notice them."""
