import pytest

# Not test modules by name, but full of assertions.
pytest.register_assert_rewrite("tests.server.conformance")
