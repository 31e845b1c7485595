"""The generic codec: what is written is read back; what is wrong is named."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from renderonline.engines.definition import Pattern, ReadingRules
from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.link import (
    MAX_DEPTH,
    FromMachine,
    FromRenderAPI,
    Heartbeat,
    Hello,
    Progress,
    decode,
    decode_frame,
    encode,
    from_wire,
    read_json,
    to_wire,
)

MESSAGES = (*get_args(FromMachine), *get_args(FromRenderAPI))
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False, width=32)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=6,
)
proper_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
whole = st.integers(-(2**63) + 1, 2**63 - 1)


def _of(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field."""
    simple: dict[Any, st.SearchStrategy[Any]] = {
        str: proper_text,
        int: whole,
        float: st.floats(-1e9, 1e9),
        bool: st.booleans(),
        type(None): st.none(),
        Any: plain,
    }
    if hint in simple:
        return simple[hint]
    origin, inner = getattr(hint, "__origin__", None), get_args(hint)
    if origin is tuple:
        return st.lists(_of(inner[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(proper_text, _of(inner[1]), max_size=3)
    if inner:
        return st.one_of(*(_of(arm) for arm in inner))
    return _instances(hint)


def _instances(cls: type) -> st.SearchStrategy[Any]:
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)] if is_dataclass(cls) else cls.__struct_fields__
    return st.builds(cls, **{name: _of(hints[name]) for name in names})


@given(st.data())
@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_of_the_link_survives_the_wire(cls: Any, data: st.DataObject) -> None:
    message = data.draw(_instances(cls))
    text = encode(message)
    assert "\n" not in text
    assert json.loads(text)["type"] == cls.__name__.lower()
    known = FromMachine if cls in get_args(FromMachine) else FromRenderAPI
    assert decode(text, known) == message
    assert decode(text.encode(), FromMachine | FromRenderAPI) == message
    assert decode_frame(text, known) == [message]


def test_reading_rules_survive_as_a_mapping() -> None:
    rules = ReadingRules(progress=(Pattern(r"Fra:(\d+)", "frame"),), exit_codes={"139": "crash"})
    assert from_wire(ReadingRules, json.loads(json.dumps(to_wire(rules)))) == rules


@dataclass(frozen=True)
class Inner:
    number: float


class Outer(Struct, frozen=True):
    name: str
    inner: Inner | None = None
    maybe: int | None = None
    either: str | int = ""
    many: tuple[Inner, ...] = ()
    named: Mapping[str, int] = {}
    anything: Any = None
    yes: bool = True


def test_nested_values_and_sets_are_written_plainly() -> None:
    wire = to_wire(Outer("n", inner=Inner(1.5), named={"a": 1}, anything=frozenset({2})))
    assert wire["inner"] == {"number": 1.5}
    assert (wire["named"], wire["anything"]) == ({"a": 1}, [2])


def test_unknown_keys_are_ignored_and_defaults_filled_in() -> None:
    assert from_wire(Outer, {"name": "n", "new_in_version_9": [1]}) == Outer("n")


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ([], "Outer must be an object"),
        ({}, "Outer.name is missing"),
        ({"name": 1}, "Outer.name must be text"),
        ({"name": None}, "Outer.name must be text"),
        ({"name": "\ud800"}, "Outer.name must be text without lone surrogates"),
        ({"name": "n", "either": 1.5}, "Outer.either must be (text or a whole number|a whole number or text)"),
        ({"name": "n", "inner": {"number": "1"}}, "Outer.inner.number must be a number"),
        ({"name": "n", "inner": {"number": True}}, "Outer.inner.number must be a number"),
        ({"name": "n", "inner": {"number": 10**300}}, "Outer.inner.number must be a number of at most 64 bits"),
        ({"name": "n", "inner": {"number": float("nan")}}, "Outer.inner.number must be a number"),
        ({"name": "n", "inner": {}}, "Outer.inner.number is missing"),
        ({"name": "n", "maybe": 1.0}, "Outer.maybe must be a whole number"),
        ({"name": "n", "maybe": True}, "Outer.maybe must be a whole number"),
        ({"name": "n", "maybe": 2**63}, "Outer.maybe must be a number of at most 64 bits"),
        ({"name": "n", "many": {}}, "Outer.many must be a list"),
        ({"name": "n", "many": [{"number": 1}, 2]}, r"Outer.many\[1\] must be an object"),
        ({"name": "n", "named": []}, "Outer.named must be an object"),
        ({"name": "n", "named": {"b": 2, "a": "1"}}, "Outer.named.a must be a whole number"),
        ({"name": "n", "named": {"\ud800": 1}}, "Outer.named must be text without"),
        ({"name": "\u0106\udfff"}, "Outer.name must be text without"),
        ({"name": "n", "yes": 1}, "Outer.yes must be true or false"),
        ({"name": "n", "anything": {"a": ["\ud800"]}}, r"Outer.anything.a\[0\] must be text without"),
        ({"name": "n", "anything": 10**400}, "Outer.anything must be a number"),
    ],
)
def test_what_is_wrong_is_named(data: Any, named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        from_wire(Outer, data)


def test_null_is_read_where_it_is_allowed() -> None:
    assert from_wire(Outer, {"name": "n", "inner": None, "maybe": None}) == Outer("n")


def test_a_whole_number_is_taken_where_a_fraction_is_wanted() -> None:
    progress = decode('{"type":"progress","attempt":1,"fraction":1}', FromMachine)
    assert progress == Progress(1, 1.0)
    assert isinstance(progress, Progress)
    assert isinstance(progress.fraction, float)


def test_values_may_not_be_nested_without_end() -> None:
    deep: Any = 1
    for _ in range(MAX_DEPTH + 1):
        deep = [deep]
    with pytest.raises(InvalidRequest, match="nested more than 32 levels"):
        from_wire(Outer, {"name": "n", "anything": deep})
    with pytest.raises(InvalidRequest, match="nested"):
        from_wire(Outer, {"name": "n", "anything": {"a": deep}})
    assert from_wire(Outer, {"name": "n", "anything": deep[0][0]}).anything == deep[0][0]


@pytest.mark.parametrize(
    "text",
    ["", "{", "NaN", '{"a": Infinity}', "[" * 100_000, '{"a":' * 100_000, b"\xff\xfe\x00", "1" * 5_000, '"\t"'],
)
def test_what_is_no_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        read_json(text)


@pytest.mark.parametrize(
    "text", ["[]", "1", "null", '"hello"', "{}", '{"type": 1}', '{"type": ["x"]}', '{"type": "assign"}']
)
def test_what_is_no_message_of_this_side_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"must be a JSON object|is not known here"):
        decode(text, FromMachine)


@given(st.text() | st.binary())
def test_no_bytes_make_anything_but_invalid_request(text: str | bytes) -> None:
    with pytest.raises(InvalidRequest):
        decode(text, FromMachine)
    if isinstance(text, str):
        with pytest.raises(InvalidRequest):
            decode_frame(text, FromMachine)


@given(st.dictionaries(st.sampled_from(["protocol", "machine_id", "engines", "held", "name", "slots", "x"]), plain))
def test_no_values_make_anything_but_invalid_request_or_a_message(data: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):  # never complete
        from_wire(Hello, data)
    allowed = {"load": data.get("protocol", 0)}
    try:
        assert isinstance(from_wire(Heartbeat, allowed), Heartbeat)
    except InvalidRequest as refused:
        assert "Heartbeat.load" in refused.message  # noqa: PT017


def test_number_that_is_not_finite_is_written_as_null_and_refused_by_the_reader() -> None:
    text = encode(Progress(1, float("nan")))
    with pytest.raises(InvalidRequest, match=r"progress\.fraction must be a number"):
        decode(text, FromMachine)
