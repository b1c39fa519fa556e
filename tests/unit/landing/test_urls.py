"""Lists of URLs: every format, judged before anything is fetched, every row to fetch or refused."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.landing import urls
from compalign_dagster.landing.urls import judge, prepare


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (None, "url_missing"), ("", "url_missing"), ("  ", "url_missing"), ("file:///etc/passwd", "scheme_refused"),
        ("ftp://a.org/x", "scheme_refused"), ("data:image/png;base64,x", "scheme_refused"),
        ("/etc/passwd", "scheme_refused"),
        ("https://", "url_unusable"), ("http://[::1", "url_unusable"), ("http://a.org:99999/", "url_unusable"),
        ("http://a.org/" + "x" * 9000, "url_unusable"), ("http://127.0.0.1/x", "address_refused"),
        ("http://[::1]/x", "address_refused"), ("http://169.254.169.254/latest", "address_refused"),
        ("FILE:///etc/passwd", "scheme_refused"), ("http://user@10.0.0.1/", "address_refused"),
    ],
)  # fmt: skip
def test_urls_that_are_never_fetched(url, reason):
    assert judge(url)[0] == reason


@pytest.mark.parametrize("url", ["http://a.org/x.jpg", "HTTPS://a.org:8443/x?y#z", "http://8.8.8.8/x"])
def test_urls_that_may_be_fetched(url):
    assert judge(url) is None


def run(path, tmp_path, **options):
    how = {"url_col": "url", "caption_col": "caption", "allow_private": False, **options}
    counts = prepare(path, tmp_path / "fetch.parquet", tmp_path / "refused.parquet", **how)
    return counts, pq.read_table(tmp_path / "fetch.parquet").to_pylist()


_ROWS = [("http://a.org/1", "one, two"), ("file:///etc/passwd", "three"), ("http://b.org/2", "vier\nfünf")]


def _parquet(path):
    pq.write_table(pa.table({"url": [url for url, _ in _ROWS], "caption": [text for _, text in _ROWS]}), path)


def _separated(separator):
    def write(path):
        lines = [f'{url}{separator}"{text}"' for url, text in _ROWS]
        path.write_text("\n".join([f"url{separator}caption", *lines]) + "\n", encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("name", "write"), [("l.parquet", _parquet), ("l.csv", _separated(",")), ("l.tsv", _separated("\t"))]
)
def test_every_format_gives_the_same_rows(name, write, tmp_path, monkeypatch):
    monkeypatch.setattr(urls, "_ROWS", 2)
    write(tmp_path / name)
    (rows, fetchable, reasons), found = run(tmp_path / name, tmp_path)
    assert (rows, fetchable, reasons) == (3, 2, {"scheme_refused": 1})
    assert found == [
        {"url": "http://a.org/1", "caption": "one, two", "list_row": 0},
        {"url": "http://b.org/2", "caption": "vier\nfünf", "list_row": 2},
    ]
    [refused] = pq.read_table(tmp_path / "refused.parquet").to_pylist()
    assert (refused["row"], refused["url"], refused["reason"]) == (1, "file:///etc/passwd", "scheme_refused")


def test_a_text_file_has_one_url_a_line(tmp_path):
    (tmp_path / "l.txt").write_bytes(b"http://a.org/1\r\n\nhttp://a.org/\xff\n")
    (rows, fetchable, reasons), found = run(tmp_path / "l.txt", tmp_path, caption_col=None)
    assert (rows, fetchable, reasons) == (3, 2, {"url_missing": 1})
    assert [row["url"] for row in found] == ["http://a.org/1", "http://a.org/\\xff"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.parquet", b"not parquet"), ("l.csv", b"address,caption\nx,y\n"), ("l.csv", b"url,caption\nx,y,z\n"),
        ("l.csv", b""), ("l.xlsx", b"x"),
    ],
)  # fmt: skip
def test_lists_that_cannot_be_read_are_refused_with_a_remedy(name, data, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="--url-col"):
        run(tmp_path / name, tmp_path)


def test_a_list_without_the_column_says_which_there_are(tmp_path):
    pq.write_table(pa.table({"URL": ["http://a.org"], "TEXT": ["x"]}), tmp_path / "l.parquet")
    with pytest.raises(InputError, match="columns URL, TEXT"):
        run(tmp_path / "l.parquet", tmp_path)
