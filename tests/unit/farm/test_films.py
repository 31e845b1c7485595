"""What film is made of frames, as people write it."""

from fractions import Fraction

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.result_names import Film


@pytest.mark.parametrize(
    ("text", "film"),
    [
        ("mp4", Film("mp4")),
        ("webm@25", Film("webm", 25.0)),
        ("mp4@23.976", Film("mp4", 23.976)),
        ("mp4@240", Film("mp4", 240.0)),
        ("mp4@30000/1001", Film("mp4", Fraction(30000, 1001))),
    ],
)
def test_a_film_is_read_and_written(text: str, film: Film) -> None:
    assert Film.parse(text) == film
    assert str(film) == text


@pytest.mark.parametrize(
    "text",
    ["", "gif", "mp4@", "mp4@0", "mp4@241", "mp4@1e3", "mp4@-5", "MP4", "mp4 ", "mp4@24@25", "mp4@٢٤"]
    + ["mp4@24/0", "mp4@0/5", "mp4@250/1", "mp4@24/", "mp4@1/2/3", "mp4@1.5/2"],
)
def test_what_is_no_film_is_refused_and_the_right_way_told(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Write mp4 or webm"):
        Film.parse(text)


@pytest.mark.parametrize(
    ("facts", "fps"),
    [
        ({}, 24.0),
        ({"scenes": []}, 24.0),
        ({"scenes": [{}]}, 24.0),
        ({"scenes": [{"fps": 29.97}, {"fps": 10}]}, 29.97),
        ({"scenes": [{"fps": 1_000_000}]}, 24.0),
        ({"scenes": [{"fps": 0}]}, 24.0),
        ({"scenes": [{"fps": "fast"}]}, 24.0),
        ({"scenes": [{"fps": 29.97, "fps_num": 30000, "fps_den": 1001}]}, Fraction(30000, 1001)),
        ({"scenes": [{"fps": 25, "fps_num": 25, "fps_den": 1}]}, 25.0),
        ({"scenes": [{"fps": 12.5, "fps_num": 25, "fps_den": 2}]}, 12.5),
        ({"scenes": [{"fps": 30, "fps_num": 30, "fps_den": 0}]}, 30.0),
    ],
)
def test_the_speed_is_the_scenes_unless_it_is_named(facts: dict[str, object], fps: float | Fraction) -> None:
    assert Film("mp4").of_scene(facts).fps == fps
    assert Film("mp4", 12.0).of_scene(facts) == Film("mp4", 12.0)


def test_a_film_is_called_like_its_scene() -> None:
    assert Film("webm").file_name("shots/a.b.blend") == "a.b.webm"
