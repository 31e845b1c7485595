import ssl

import pytest

from renderonline.database.connecting import parse
from renderonline.farm.errors import InvalidRequest


def test_the_existing_systems_string_is_read() -> None:
    place = parse("Server=localhost;Database=renderonline;User Id=farm;Password=s3cret;")
    assert (place.dialect, place.host, place.port) == ("mysql", "localhost", 3306)
    assert (place.database, place.user, place.password) == ("renderonline", "farm", "s3cret")


@pytest.mark.parametrize(
    "text",
    [
        "server=db;PORT=3307;database=r;uid=u;pwd=p",
        "Data Source=db;Port=3307;Initial Catalog=r;Username=u;Password=p;Pooling=true",
        " Host = db ; port = 3307 ; Database = r ; User = u ; Password = p ;; ",
        "mysql://u:p@db:3307/r",
        "mariadb+pymysql://u:p@db:3307/r",
    ],
)
def test_all_spellings_name_the_same_place(text: str) -> None:
    place = parse(text)
    assert (place.host, place.port, place.database, place.user, place.password) == ("db", 3307, "r", "u", "p")


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ('Server=h;Database=r;Password="a;b=c"', "a;b=c"),
        ("Server=h;Database=r;Password='it''s';Port=1", "it's"),
        ("Server=h;Database=r;Password=a=b", "a=b"),
        ("Server=h;Database=r;Password=", ""),
        ("mysql://u:a%40b%2Fc@h/r", "a@b/c"),
    ],
)
def test_passwords_with_special_characters_survive(text: str, password: str) -> None:
    assert parse(text).password == password


def test_no_password_is_ever_shown() -> None:
    for text in ("Server=h;Database=r;Uid=u;Pwd=s3cret", "mysql://u:s3cret@h/r"):
        place = parse(text)
        assert "s3cret" not in repr(place) + place.label + str(place.url)


def test_a_socket_is_taken_from_either_form() -> None:
    assert parse("Server=/run/mysqld.sock;Database=r").unix_socket == "/run/mysqld.sock"
    assert parse("mysql://u@localhost/r?unix_socket=/run/mysqld.sock").unix_socket == "/run/mysqld.sock"


def test_sqlite_urls_name_relative_and_absolute_files() -> None:
    assert parse("sqlite:///data/farm.sqlite").database == "data/farm.sqlite"
    assert parse("sqlite:////var/lib/farm%20db.sqlite").database == "/var/lib/farm db.sqlite"
    assert parse("sqlite:////x.db").dialect == "sqlite"


@pytest.mark.parametrize(
    ("mode", "verify", "hostname"),
    [
        ("Required", ssl.CERT_NONE, False),
        ("VerifyCA", ssl.CERT_REQUIRED, False),
        ("VerifyFull", ssl.CERT_REQUIRED, True),
    ],
)
def test_ssl_modes_become_what_they_mean(mode: str, verify: ssl.VerifyMode, hostname: bool) -> None:
    context = parse(f"Server=h;Database=r;SslMode={mode}").connect_arguments["ssl"]
    assert (context.verify_mode, context.check_hostname) == (verify, hostname)


def test_ssl_none_switches_tls_off() -> None:
    assert parse("Server=h;Database=r;SslMode=None").connect_arguments["ssl_disabled"] is True


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("nonsense", "can't be read"),
        ("Server=h;User Id=u", "no database"),
        ("Server=h;Database=r;Port=99999", "port"),
        ("Server=h;Database=r;Port=abc", "port"),
        ("Server=h;Database=r;Password='open", "not closed"),
        ("Server=h;Database=r;SslMode=maybe", "SslMode"),
        ("postgres://h/r", "postgres"),
        ("mysql://h:port/r", "can't be read"),
        ("mysql://h/r?tls=1", "tls"),
        ("sqlite://farm.db", "slashes"),
        ("sqlite:///:memory:", "names a file"),
        ("sqlite:///", "names a file"),
    ],
)
def test_bad_strings_say_what_is_wrong(text: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        parse(text)


def test_no_error_tells_the_password() -> None:
    for text in ("Server=h;Password=s3cret", "mysql://u:s3cret@h:port/r", "mysql://u:s3cret@h/r?x=1"):
        with pytest.raises(InvalidRequest) as refused:
            parse(text)
        assert "s3cret" not in str(refused.value)
