"""One host has one name, whatever way a URL writes it, one by one and in a column."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster import hosts

PIECES = st.sampled_from(
    ["http", "HTTPS", ":", "/", "//", "\\", "\t", "\n", " ", "\x1c", "\u3000", "@", "?", "#", "[", "]", "::1", ":80",
     "example.com", "EXAMPLE", ".", "\u3002", "%61", "%2F", "\uff0f", "\u212a", "\u017f", "ü", "\0", "\ue000"]
)  # fmt: skip


@given(st.lists(st.lists(PIECES, max_size=9).map("".join) | st.none(), max_size=9))
def test_a_column_has_the_hosts_that_its_urls_have_one_by_one(urls):
    found = hosts.hosts_of(pl.Series("url", urls, pl.String))
    assert found.to_list() == [None if url is None else hosts.host_of(url) for url in urls]


def test_the_planted_bug_of_a_beginning_that_ends_at_a_tab_turns_it_red(monkeypatch):
    monkeypatch.setattr(hosts, "_HEAD", r"^[^/]*//[^/]*")
    url = "http:/\t/example.com/a"
    assert hosts.hosts_of(pl.Series([url])).to_list() != [hosts.host_of(url)]
