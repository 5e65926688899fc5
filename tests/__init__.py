import pytest

pytest.register_assert_rewrite("tests.adapter_conformance")
