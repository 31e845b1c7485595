"""What RenderAPI's settings refuse, and which form they take."""

import json
from pathlib import Path
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


@pytest.mark.parametrize("place", ["farm/data", "farm/data/files/1", "farm", "link", "files"])
def test_nothing_is_delivered_among_the_farms_own_files(tmp_path: Path, place: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "farm", target_is_directory=True)
    flags = {"data_directory": str(tmp_path / "farm" / "data"), "download_path": str(tmp_path / "files")}
    with pytest.raises(InvalidRequest, match="must lie apart"):
        load_settings(flags={**flags, "deliver_roots": json.dumps({"nas": str(tmp_path / place)})}, environment={})
    load_settings(flags={**flags, "deliver_roots": json.dumps({"nas": str(tmp_path / "nas")})}, environment={})
