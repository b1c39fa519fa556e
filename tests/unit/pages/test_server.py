"""The page server reads, serves pages of the store only, and answers this machine only."""

import http.client
import json
import threading

import pytest

from compalign_dagster import artifacts, latest
from compalign_dagster.errors import InputError
from compalign_dagster.pages.server import HOST, servable, serve
from compalign_dagster.store import LocalStore, TransientStoreError


@pytest.fixture
def server(tmp_path):
    store = LocalStore(tmp_path / "store")
    (tmp_path / "secret.html").write_text("secret")
    artifact = artifacts.publish(
        store, "raw_crawl", "abcd", {"pairs.parquet": b"PAR1", "config.json": b"{}"}, code_version=1,
        inputs=[], config={}, facts={}, partition="batch-00001",
        views={"page.html": b"<p>hello", "preview.jpg": b"\xff\xd8"},
    )  # fmt: skip
    latest.point(artifact)
    server = serve(store, 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    server.artifact = artifact
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def ask(server, path, method="GET", **headers):
    port = server.server_address[1]
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    for name, value in ({"Host": f"{HOST}:{port}"} | headers).items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer, body


def test_page_is_served_with_strict_headers(server):
    answer, body = ask(server, "/" + server.artifact.file_key("page.html"))
    assert (answer.status, body) == (200, b"<p>hello")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


def test_pictures_and_json_are_served(server):
    for name, kind in {"preview.jpg": "image/jpeg", "config.json": "application/json; charset=utf-8"}.items():
        answer, _ = ask(server, "/" + server.artifact.file_key(name))
        assert (answer.status, answer.headers["Content-Type"]) == (200, kind)


def test_head_has_no_body(server):
    answer, body = ask(server, "/" + server.artifact.file_key("page.html"), "HEAD")
    assert (answer.status, body, answer.headers["Content-Length"]) == (200, b"", "8")


def test_start_page_links_the_newest_pages_and_the_links_open(server):
    answer, body = ask(server, "/")
    path = "/" + server.artifact.file_key("page.html")
    assert answer.status == 200
    assert f'href="{path}"'.encode() in body
    assert b"preview.jpg" not in body
    assert ask(server, path)[0].status == 200


def drawn(path: str, query: str) -> bytes | None:
    if path == "/browse/gone":
        raise InputError("dataset gone", expected="one", found="none", remedy="Name another.")
    return f"<p>{path} {query}".encode() if path.startswith("/browse") else None


def test_a_page_that_is_drawn_when_asked_for_has_the_same_headers_as_others(server):
    server.draw = drawn
    answer, body = ask(server, "/browse/a/b?after=%5B1%5D")
    assert (answer.status, body) == (200, b"<p>/browse/a/b after=%5B1%5D")
    stored, _ = ask(server, "/" + server.artifact.file_key("page.html"))
    assert stored.status == 200
    same = ("Content-Type", "Content-Security-Policy", "X-Content-Type-Options", "Referrer-Policy", "Cache-Control")
    assert [answer.headers[name] for name in same] == [stored.headers[name] for name in same]
    answer, body = ask(server, "/browse/a", "HEAD")
    assert (answer.status, body) == (200, b"")


def test_a_drawn_page_that_is_not_there_says_what_is_missing_and_only_to_this_machine(server):
    server.draw = drawn
    answer, body = ask(server, "/browse/gone")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "text/plain; charset=utf-8")
    assert b"Name another" in body
    assert ask(server, "/browse/a", Host="evil.example")[0].status == 403


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.html", "/%2e%2e/secret.html", "/..%2fsecret.html", "/raw_crawl/../../secret.html",
        "//secret.html", "/raw_crawl/.hidden.html", "/raw_crawl\\page.html", "/a%00.html", "/raw_crawl/",
        "/raw_crawl",
        "/none.html", "/" + "a" * 5000 + ".html", "/%ff.html", "/a%0d%0ab.html",
    ],
)  # fmt: skip
def test_other_paths_are_not_found(server, path):
    answer, body = ask(server, path)
    assert answer.status == 404
    assert b"secret" not in body


def test_data_files_are_not_served(server):
    assert ask(server, "/" + server.artifact.file_key("pairs.parquet"))[0].status == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]:1"])
def test_foreign_host_names_are_refused(server, host):
    assert ask(server, "/", Host=host)[0].status == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9999", "LOCALHOST", "[::1]:80", "[::1]"])
def test_local_host_names_are_answered_whatever_the_port(server, host):
    assert ask(server, "/", Host=host)[0].status == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_nothing_can_be_written(server, method):
    answer, _ = ask(server, "/", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")


def test_missing_newest_artifact_does_not_hide_the_others(server):
    gone = {"version": 1, "decided": "", "value": {"manifest": "gone/manifest.json", "data_version": "x"}}
    server.store.put_new("decisions/latest/gone/00000001.json", json.dumps(gone).encode())
    assert b"batch-00001" in ask(server, "/")[1]


def test_a_store_that_does_not_answer_is_said_and_the_server_goes_on(server, monkeypatch):
    def unreachable(key: str) -> bytes:
        raise TransientStoreError("read s3://b", expected="an answer", found="SlowDown", remedy="Run again.")

    path = "/" + server.artifact.file_key("page.html")
    monkeypatch.setattr(server.store, "read", unreachable)
    answer, body = ask(server, path)
    assert (answer.status, b"SlowDown" in body) == (503, True)
    monkeypatch.undo()
    assert ask(server, path)[0].status == 200


def test_taken_port_says_what_to_do(server):
    with pytest.raises(InputError, match="COMPALIGN_PAGES_PORT"):
        serve(server.store, server.server_address[1])


def test_servable_keeps_ordinary_keys():
    assert servable("/raw_crawl/batch-00001/ab/cd/page.html") == "raw_crawl/batch-00001/ab/cd/page.html"
    assert servable("/a/b%20c.png") == "a/b c.png"
