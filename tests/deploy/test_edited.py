"""A file with random edits loads as an equal model, or is refused in our own words, at once."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.deploy.edited import Edited


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Edited:
    return Edited(tmp_path_factory.mktemp("edited"))


@given(seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_edited_file_is_equal_or_refused(edited: Edited, seed: int) -> None:
    assert edited.outcome(seed) in ("equal", "refused")
