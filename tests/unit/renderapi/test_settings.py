"""What RenderAPI's settings refuse, and which form they take."""

from typing import Any

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi.settings import Settings, load_settings


def pools(value: Any) -> Settings:
    return load_settings(flags={"pool_sandbox": value}, environment={})


def test_boxes_of_pools_have_one_canonical_form() -> None:
    assert pools({" Secure": "BWRAP", "film": "landlock"}).pool_boxes == {"secure": "bwrap", "film": "landlock"}
    assert pools('{"secure": "bwrap"}').pool_boxes == {"secure": "bwrap"}


@pytest.mark.parametrize("value", [["secure"], {"secure": 1}, {"secure": "jail"}, {"two words": "bwrap"}, "bwrap"])
def test_box_of_a_pool_that_nobody_can_have_is_refused_at_start(value: Any) -> None:
    with pytest.raises(InvalidRequest):
        pools(value)
