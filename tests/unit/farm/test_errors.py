"""Errors for people."""

import pytest

from renderonline.farm import errors
from renderonline.farm.errors import NotFound, RenderOnlineError

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, RenderOnlineError)]


def test_codes_are_stable_and_differ() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(set(codes)) == len(codes)
    assert all(400 <= cls.status < 600 for cls in CLASSES)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_carries_its_message_and_code(cls: type[RenderOnlineError]) -> None:
    error = cls("Do this next.")
    assert error.message == str(error) == "Do this next."
    assert error.reason_code == cls.code


def test_a_finer_code_may_be_given() -> None:
    assert NotFound("No such task.", code="task_not_found").reason_code == "task_not_found"
