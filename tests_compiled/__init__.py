"""The compiled way against the plain one; `make test-compiled` runs the tests of the index with it as well."""
