import pytest
from filelock import FileLock

from kdad.errors import UserError
from kdad.locks import exclusive_lock


def test_one_works_the_next_is_refused_and_nothing_is_left(tmp_path):
    lock = tmp_path / "deep" / ".lock"
    with exclusive_lock(lock, "somebody works here"):
        with pytest.raises(UserError, match="somebody works here"), exclusive_lock(lock, "somebody works here"):
            pytest.fail("two at once")
        assert lock.exists()
    assert not lock.exists()
    with exclusive_lock(lock, "somebody works here"):
        pass


def test_an_end_by_an_error_lets_the_next_one_in(tmp_path):
    lock = tmp_path / ".lock"
    with pytest.raises(ZeroDivisionError), exclusive_lock(lock, "never"):
        raise ZeroDivisionError
    with FileLock(lock, timeout=0):
        pass
