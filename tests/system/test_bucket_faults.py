"""What a bucket store does when the server or the network misbehaves: retried where that helps, else a typed error."""

import hashlib
import traceback

import pytest

from compalign_dagster.store import (
    AccessDeniedError,
    InconclusiveWriteError,
    ObjectChangedError,
    ObjectMissingError,
    StoreError,
    TransientStoreError,
    open_store,
)
from compalign_dagster.store.bucket import BucketStore
from tests.support import fault_proxy as fault
from tests.support.processes import free_port
from tests.support.s3_server import KEY_ID, SECRET, client_of

pytestmark = [pytest.mark.system]

BODY = b"".join(hashlib.sha256(bytes([at])).digest() for at in range(256)) * 40  # 320 kB, no two parts alike


@pytest.fixture(autouse=True)
def _hurried(monkeypatch):
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)


@pytest.fixture
def store(s3, faults):
    """A store behind the proxy, with one object, whose client gives up after two attempts."""
    s3.client.put_object(Bucket=s3.bucket, Key="a", Body=BODY)
    store = BucketStore(s3.url, client_of(faults.endpoint, attempts=2))
    store.require_conditional_writes()
    faults.heal()
    return store


USES = {
    "stat": ("head", lambda store: store.stat("a").size == len(BODY)),
    "exists": ("head", lambda store: store.exists("a")),
    "read": ("get", lambda store: store.read("a") == BODY),
    "read_range": ("get", lambda store: store.read_range("a", 5, 1000) == BODY[5:1005]),
    "open": ("get", lambda store: store.open("a").read() == BODY),
    "fetch": ("get", lambda store: store.fetch("a").read_bytes() == BODY),
    "list": ("list", lambda store: [item.key for item in store.list()] == ["a"]),
    "folders": ("list", lambda store: list(store.folders()) == []),
    "put_new": ("put_new", lambda store: store.put_new("b", b"x")),
}
PASSING = {"throttled": fault.slow_down, "failed": fault.broken, "reset": fault.reset}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("what", PASSING)
def test_what_passes_is_retried_and_the_operation_succeeds(store, faults, use, what):
    kind, work = USES[use]
    faults.inject(kind, PASSING[what])
    assert work(store)
    assert faults.count(kind) == 2


@pytest.mark.parametrize("use", [use for use in USES if use != "put_new"])
@pytest.mark.parametrize("what", PASSING)
def test_what_does_not_pass_is_a_transient_error_after_bounded_retries(store, faults, use, what):
    kind, work = USES[use]
    faults.inject(kind, PASSING[what], first=None)
    with pytest.raises(TransientStoreError, match=store.url):
        work(store)
    assert faults.count(kind) == 2


@pytest.mark.parametrize("use", USES)
def test_access_denied_is_said_at_once_and_never_retried(store, faults, use):
    kind, work = USES[use]
    faults.inject(kind, fault.denied, first=None)
    with pytest.raises(AccessDeniedError, match="policy"):
        work(store)
    assert faults.count(kind) == 1
    assert faults.count("head") == (kind == "head" or use == "fetch")


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (403, "SignatureDoesNotMatch", AccessDeniedError),
        (403, "InvalidAccessKeyId", AccessDeniedError),
        (400, "ExpiredToken", AccessDeniedError),
        (404, "NoSuchKey", ObjectMissingError),
        (404, "NoSuchBucket", StoreError),
        (429, "TooManyRequests", TransientStoreError),
        (400, "AuthorizationHeaderMalformed", StoreError),
        (418, "<script>" * 100, StoreError),
    ],
)
def test_every_answer_has_its_error_which_says_what_and_nothing_of_the_request(
    store, faults, caplog, status, code, error
):
    message = f"{KEY_ID} {SECRET} StringToSign AWS4-HMAC-SHA256 Signature=0123 Body=hush"
    faults.inject("get", fault.refuse(status, code, message), first=None)
    with pytest.raises(error) as caught:
        store.read("a")
    assert type(caught.value) is error
    said = "".join(traceback.format_exception(caught.value)) + caplog.text
    for secret in (KEY_ID, SECRET, "StringToSign", "Signature=", "hush", "<script>"):
        assert secret not in said
    assert f"{store.url}/a" in str(caught.value)
    assert "<" in code or code in str(caught.value) or status == 404


def test_no_credentials_are_said_without_a_request(s3, faults, monkeypatch):
    for name, value in s3.env(faults.endpoint).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    for use in (lambda store: store.read("a"), lambda store: store.put_new("a", b"x")):
        with pytest.raises(AccessDeniedError, match="NoCredentialsError"):
            use(open_store(s3.url))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AccessDeniedError, match="ProfileNotFound"):
        open_store(s3.url).read("a")
    assert faults.log == []


def test_a_server_that_does_not_listen_is_named_without_what_its_url_hides():
    port = free_port()
    store = BucketStore("s3://bucket", client_of(f"http://user:{SECRET[:4]}@127.0.0.1:{port}", attempts=1))
    with pytest.raises(TransientStoreError, match=f"127.0.0.1:{port}") as caught:
        store.read("a")
    assert SECRET[:4] not in "".join(traceback.format_exception(caught.value))


def test_a_bucket_that_is_not_there_is_no_missing_object(s3):
    with pytest.raises(StoreError, match="NoSuchBucket"):
        list(BucketStore("s3://no-such-bucket", s3.client).list())
    with pytest.raises(StoreError, match="NoSuchBucket"):
        BucketStore("s3://no-such-bucket", s3.client).put_new("a", b"x")


BREAKING = {"reset": fault.cut_body, "closed early": fault.short_body, "silent": fault.stall(1.5)}


@pytest.mark.parametrize("use", ["read", "read_range", "open", "fetch"])
@pytest.mark.parametrize("how", BREAKING)
def test_a_body_that_breaks_goes_on_where_it_broke(s3, store, faults, use, how):
    if how == "silent":
        store = BucketStore(s3.url, client_of(faults.endpoint, read_timeout=1))
    asked: list[str] = []

    def note(request):
        asked.append(request.headers.get("Range", ""))
        BREAKING[how](request)

    def note_and_pass(request):
        asked.append(request.headers["Range"])
        assert "If-Match" in request.headers
        fault.pass_on(request)

    faults.inject("get", note).inject("get", note_and_pass)
    assert USES[use][1](store)
    start = int(asked[1].removeprefix("bytes=").partition("-")[0])
    begun, half = (5, 500) if use == "read_range" else (0, len(BODY) // 2)
    if how == "closed early":
        assert start == begun + half
    else:  # what the client held and had not handed over when the connection broke is asked for again
        assert begun <= start <= begun + half


def test_a_body_that_breaks_again_and_again_but_moves_is_read_to_its_end(store, faults):
    faults.inject("get", fault.short_body, first=12)
    assert store.read("a") == BODY
    assert faults.count("get") == 13


def test_a_body_that_never_moves_is_given_up_after_a_few_connections(store, faults):
    def head_only(request):
        request.send_head(request.forward())
        request.reset()

    faults.inject("get", head_only, first=None)
    with pytest.raises(TransientStoreError, match="byte 0"):
        store.read("a")
    assert faults.count("get") == 5


def test_a_slow_body_is_waited_for_as_long_as_it_moves(store, faults):
    faults.inject("get", fault.dribble(2.0))
    assert store.read("a") == BODY
    assert faults.count("get") == 1


def other_bytes(s3):
    return lambda: s3.client.put_object(Bucket=s3.bucket, Key="a", Body=b"other" * (len(BODY) // 5))


def test_an_object_that_changes_between_list_and_read_is_not_read(s3, store, faults):
    (listed,) = store.list()
    faults.inject("get", fault.first_do(other_bytes(s3)))
    with pytest.raises(ObjectChangedError, match=f"{s3.bucket}/a"):
        store.read_range("a", 0, 10, stamp=listed.stamp)
    with pytest.raises(ObjectChangedError):
        store.open("a", stamp=listed.stamp)


def test_an_object_that_changes_while_a_broken_body_is_resumed_never_gives_mixed_bytes(s3, store, faults):
    faults.inject("get", fault.cut_body).inject("get", fault.first_do(other_bytes(s3)))
    with pytest.raises(ObjectChangedError):
        store.read("a")


def test_the_planted_bug_of_resuming_without_the_etag_gives_mixed_bytes(s3, store, faults):
    faults.inject("get", fault.cut_body)

    def forgetful(request):
        other_bytes(s3)()
        fault.without("If-Match")(request)

    faults.inject("get", forgetful)
    assert store.read("a") != BODY


@pytest.mark.parametrize("use", ["read", "open"])
def test_an_object_that_vanishes_is_missing_before_and_in_the_middle_of_reading(s3, store, faults, use):
    def vanish():
        s3.client.delete_object(Bucket=s3.bucket, Key="a")

    faults.inject("get", fault.cut_body).inject("get", fault.first_do(vanish))
    with pytest.raises(ObjectMissingError):
        USES[use][1](store)
    with pytest.raises(ObjectMissingError):
        USES[use][1](store)


def test_an_object_that_vanishes_between_list_and_read_is_missing(s3, store, faults):
    faults.inject("get", fault.first_do(lambda: s3.client.delete_object(Bucket=s3.bucket, Key="a")))
    (listed,) = store.list()
    with pytest.raises(ObjectMissingError):
        store.read_range("a", 0, 10, stamp=listed.stamp)


def test_a_server_that_ignores_ranges_is_found_out(store, faults):
    faults.inject("get", fault.without("Range"))
    with pytest.raises(StoreError, match="range"):
        store.read_range("a", 100, 10)


@pytest.mark.parametrize("given", ["bytes=100-999", "bytes=100-104", "bytes=99-109"])
def test_a_server_that_sends_another_range_than_was_asked_for_is_found_out(store, faults, given):
    def other(request):
        request.headers = {name: value for name, value in request.headers.items() if name.lower() != "range"}
        request.headers["Range"] = given
        fault.pass_on(request)

    faults.inject("get", other)
    with pytest.raises(StoreError, match="range"):
        store.read_range("a", 100, 10)


def login_page(request):
    """Somebody between answers that all is well; the server sees nothing."""
    page = b"<html><body>Please log in.</body></html>"
    request.send_head(fault.Answer(200, {"Content-Type": "text/html", "Content-Length": str(len(page))}, page))
    request.send(b"" if request.method == "HEAD" else page)


@pytest.mark.parametrize("use", USES)
def test_a_page_that_somebody_else_sends_is_no_answer(s3, store, faults, use):
    kind, work = USES[use]
    faults.inject(kind, login_page, first=None)
    with pytest.raises(StoreError, match="an S3 server"):
        work(store)
    assert set(s3.keys()) == {"a", ".compalign/conditional-writes"}


def test_a_put_that_somebody_else_has_answered_is_done_again(s3, store, faults):
    faults.inject("put_new", login_page)
    assert store.put_new("b", b"x")
    assert s3.client.get_object(Bucket=s3.bucket, Key="b")["Body"].read() == b"x"


def lacking(*headers):
    def act(request):
        answer = request.forward()
        lost = {name.lower() for name in headers}
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in lost}
        request.send_head(fault.Answer(answer.status, {**kept, "Connection": "close"}, b""))
        request.send(answer.body)
        request._handler.close_connection = True

    return act


@pytest.mark.parametrize("header", ["ETag", "Content-Length"])
@pytest.mark.parametrize("use", ["stat", "read", "read_range", "open"])
def test_an_answer_without_what_it_must_say_is_refused(store, faults, use, header):
    kind, work = USES[use]
    faults.inject(kind, lacking(header), first=None)
    with pytest.raises(StoreError, match="an S3 server"):
        work(store)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("use", USES)
def test_a_redirect_is_said_and_not_followed(store, faults, use, status):
    def elsewhere(request):
        there = {"Location": "http://127.0.0.1:1/?X-Amz-Signature=hush", "Content-Length": "0"}
        request.send_head(fault.Answer(status, there, b""))

    kind, work = USES[use]
    faults.inject(kind, elsewhere, first=None)
    with pytest.raises(StoreError, match="a redirect") as caught:
        work(store)
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_bytes_damaged_on_the_way_are_not_taken_for_the_object(s3, store, faults):
    store.put_new("b", BODY)  # the client stores a checksum with it

    def flip(request):
        answer = request.forward()
        request.send_head(answer)
        request.send(answer.body[:-1] + bytes([answer.body[-1] ^ 1]))

    faults.inject("get", flip)
    with pytest.raises(StoreError, match="checksum"):
        store.read("b")


def test_a_listing_goes_on_after_a_page_that_failed(s3, store, faults):
    for number in range(6):
        s3.client.put_object(Bucket=s3.bucket, Key=f"p/{number}", Body=b"")

    def two_a_page(request):
        request.path += "&max-keys=2"
        fault.pass_on(request)

    faults.inject("list", fault.slow_down).inject("list", two_a_page)
    faults.inject("list", fault.reset).inject("list", two_a_page)
    assert [item.key for item in store.list("p/")] == [f"p/{number}" for number in range(6)]


def test_a_server_without_conditional_writes_is_refused_before_anything_is_published(s3, faults):
    faults.inject("put_new", fault.without("If-None-Match"), first=None)
    store = BucketStore(f"{s3.url}/x", client_of(faults.endpoint))
    for _ in range(2):
        with pytest.raises(StoreError, match="conditional writes"):
            store.put_new("a", b"x")
    assert s3.keys() == ["x/.compalign/conditional-writes"]
    assert list(store.list()) == []


def test_a_server_that_keeps_the_condition_of_puts_alone_is_refused_what_goes_up_in_parts(s3, faults, tmp_path):
    faults.inject("complete", fault.without("If-None-Match"), first=None)
    (tmp_path / "big").write_bytes(bytes(6 << 20))
    store = BucketStore(f"{s3.url}/x", client_of(faults.endpoint), part_bytes=5 << 20)
    for _ in range(2):
        with pytest.raises(StoreError, match="conditional writes"):
            store.put_new("a", tmp_path / "big")
    assert store.put_new("b", b"x")
    assert s3.keys() == ["x/.compalign/conditional-writes", "x/b"]
    faults.heal()
    assert store.put_new("a", tmp_path / "big"), "another server"
    assert "Uploads" not in s3.client.list_multipart_uploads(Bucket=s3.bucket)


def test_the_planted_bug_of_trusting_a_completion_overwrites(s3, faults, tmp_path):
    class Trusting(BucketStore):
        def require_conditional_writes(self, *, in_parts=False):
            """Believe."""

    def write_theirs():
        s3.client.put_object(Bucket=s3.bucket, Key="a", Body=b"theirs")

    (tmp_path / "big").write_bytes(bytes(6 << 20))
    faults.inject("create_upload", fault.first_do(write_theirs)).inject("complete", fault.without("If-None-Match"))
    assert Trusting(s3.url, client_of(faults.endpoint), part_bytes=5 << 20).put_new("a", tmp_path / "big")
    assert BucketStore(s3.url, s3.client).stat("a").size == 6 << 20, "the fault did not bite"


def test_a_server_that_does_not_implement_the_header_is_refused_too(s3, faults):
    faults.inject("put_new", fault.refuse(501, "NotImplemented"), first=None)
    with pytest.raises(StoreError, match="conditional writes"):
        BucketStore(s3.url, client_of(faults.endpoint)).put_new("a", b"x")
    assert s3.keys() == []


def test_the_planted_bug_of_trusting_every_server_overwrites(s3, faults):
    class Trusting(BucketStore):
        def require_conditional_writes(self):
            """Believe."""

    faults.inject("put_new", fault.without("If-None-Match"), first=None)
    store = Trusting(s3.url, client_of(faults.endpoint))
    assert store.put_new("a", b"first")
    assert store.put_new("a", b"second"), "the fault did not bite"
    assert store.read("a") == b"second"


def test_the_proof_of_conditional_writes_costs_two_requests_then_one_then_none(s3, faults, monkeypatch):
    monkeypatch.setattr("compalign_dagster.store.bucket._proven", set())
    client = client_of(faults.endpoint)
    for expected in (2, 0):
        faults.heal()
        BucketStore(s3.url, client).require_conditional_writes()
        assert len(faults.log) == expected
    monkeypatch.setattr("compalign_dagster.store.bucket._proven", set())  # another process
    BucketStore(s3.url, client).require_conditional_writes()
    assert len(faults.log) == 1


def test_each_operation_costs_no_more_requests_than_it_must(s3, store, faults, tmp_path):
    def kinds(work):
        faults.heal()
        work()
        return [kind for kind, _ in faults.log]

    (tmp_path / "big").write_bytes(b"x" * (11 << 20))
    parts = BucketStore(s3.url, store.client, part_bytes=5 << 20)
    parts.require_conditional_writes(in_parts=True)
    assert kinds(lambda: store.put_new("b", b"x")) == ["put_new"]
    assert kinds(lambda: store.put_new("b", b"y")) == ["put_new", "head"]
    three_parts = ["head", "create_upload", "part", "part", "part", "complete"]
    assert kinds(lambda: parts.put_new("c", tmp_path / "big")) == three_parts
    assert kinds(lambda: store.read("a")) == ["get"]
    assert kinds(lambda: store.read_range("a", 1, 2)) == ["get"]
    assert kinds(lambda: store.open("a").read()) == ["get"]
    assert kinds(lambda: store.stat("a")) == kinds(lambda: store.exists("a")) == ["head"]
    assert kinds(lambda: list(store.list())) == kinds(lambda: list(store.folders())) == ["list"]
    assert kinds(lambda: store.fetch("a")) == ["head", "get"]
    assert kinds(lambda: store.fetch("a")) == ["head"]


def test_an_inconclusive_write_is_an_error_of_its_own_that_says_what_to_do(store, faults):
    faults.inject("put_new", fault.cut_answer, first=None).inject("head", fault.denied, first=None)
    with pytest.raises(InconclusiveWriteError, match=r"Run again.*never replaces"):
        store.put_new("b", b"x")
