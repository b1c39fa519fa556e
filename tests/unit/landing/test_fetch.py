"""The guard round img2dataset: what it connects to, for names and redirects too, and how much it reads."""

import http.client
import urllib.error

import pytest

from compalign_dagster.landing import fetch
from tests.support import web_server
from tests.support.shard_builder import picture


@pytest.fixture
def web():
    with web_server.running() as server:
        yield server


def guarded(**options):
    return fetch.opener(**{"most_bytes": 100_000, "most_seconds": 5, **options})


def only_the_first_loopback(address: str) -> str | None:
    """As if 127.0.0.1 were public and every other address were not."""
    return None if address == "127.0.0.1" else f"{address} is not public"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "240.0.0.1", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:1::", "2001:db8::1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address):
    assert fetch.refusal(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_not(address):
    assert fetch.refusal(address) is None


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:7f00:1]"]
)
def test_no_spelling_of_this_machine_is_asked(host, web):
    with pytest.raises(urllib.error.URLError, match="address refused"):
        guarded().open(web.url("/picture/1", host), timeout=5)
    assert web.asked == []


def test_the_planted_bug_of_no_judgement_is_caught(web):
    guarded(refuse=fetch.nothing_is_refused).open(web.url("/picture/1"), timeout=5).read()
    assert web.asked == ["/picture/1"]


def test_what_may_be_fetched_comes_byte_for_byte(web):
    with guarded(refuse=only_the_first_loopback).open(web.url("/picture/3"), timeout=5) as answer:
        assert answer.read() == picture(3)


def test_a_redirect_to_a_refused_address_is_not_followed(web):
    open_guarded = guarded(refuse=only_the_first_loopback).open
    with pytest.raises(urllib.error.URLError, match=r"address refused: 127\.0\.0\.2"):
        open_guarded(web.url("/to/" + web.url("/picture/1", "127.0.0.2")), timeout=5)
    assert len(web.asked) == 1
    with open_guarded(web.url("/to/" + web.url("/picture/1")), timeout=5) as answer:
        assert answer.read() == picture(1)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://x/"])
def test_no_other_scheme_is_opened_directly_or_by_redirect(url, web):
    open_guarded = guarded(refuse=only_the_first_loopback).open
    with pytest.raises(urllib.error.URLError):
        open_guarded(url, timeout=5)
    with pytest.raises(urllib.error.URLError):
        open_guarded(web.url("/to/" + url), timeout=5)


def test_a_name_with_one_refused_address_among_its_addresses_is_refused(monkeypatch):
    places = [(2, 1, 6, "", ("93.184.215.14", 80)), (2, 1, 6, "", ("10.0.0.7", 80))]
    monkeypatch.setattr(fetch.socket, "getaddrinfo", lambda *_, **__: places)
    with pytest.raises(urllib.error.URLError, match=r"address refused: 10\.0\.0\.7"):
        guarded().open("http://example.org/x", timeout=5)


def test_proxies_of_the_environment_are_not_used(web, monkeypatch):
    monkeypatch.setenv("http_proxy", web.url(""))
    with pytest.raises(urllib.error.URLError, match="address refused"):
        guarded().open("http://localhost/picture/1", timeout=5)
    assert web.asked == []


def test_an_answer_that_is_too_large_is_given_up(web):
    with pytest.raises(OSError, match="larger than 100000 bytes"):
        guarded(refuse=only_the_first_loopback).open(web.url("/large/200000"), timeout=5).read()


def test_an_answer_that_drips_is_given_up(web):
    with pytest.raises(OSError, match="took longer than 1 s"):
        guarded(refuse=only_the_first_loopback, most_seconds=1).open(web.url("/drip/"), timeout=5)


def test_an_answer_that_is_cut_short_is_no_image(web):
    with pytest.raises(http.client.IncompleteRead):
        guarded(refuse=only_the_first_loopback).open(web.url("/cut/"), timeout=5).read()
