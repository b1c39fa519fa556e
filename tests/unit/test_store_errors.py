"""What a folder as a store says when the operating system refuses: full, forbidden, stale, too long."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compalign_dagster.store import (
    AccessDeniedError,
    LocalStore,
    ObjectMissingError,
    StoreError,
    TransientStoreError,
)
from tests.support.processes import ROOT


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "store")


def keys(store: LocalStore) -> list[str]:
    return [item.key for item in store.list()]


def said_by(error: BaseException) -> str:
    """The line a person reads."""
    assert "\n" not in str(error)
    return str(error)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB of its own."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_is_said_publishes_nothing_and_is_no_matter_once_there_is_room(small_disk, tmp_path):
    store, body = LocalStore(small_disk / "store"), os.urandom(600_000)
    (tmp_path / "source").write_bytes(body)
    assert store.put_new("a", body)
    for source in (body, tmp_path / "source"):
        with pytest.raises(StoreError, match="room for it, found No space left on device") as caught:
            store.put_new("b", source)
        assert "nothing was published" in said_by(caught.value)
        assert not store.exists("b")
        assert [path.name for path in store.root.iterdir()] == ["a"]
    store.path("a").unlink()
    assert store.put_new("b", body)
    assert store.read("b") == body


def test_a_file_that_may_not_grow_so_large_is_said_and_publishes_nothing(tmp_path):
    code = f"""
import resource, signal
from pathlib import Path
from compalign_dagster.store import LocalStore, StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = LocalStore(Path({str(tmp_path)!r}))
try:
    store.put_new("a", bytes(200_000))
except StoreError as error:
    print(error)
assert store.put_new("a", b"small")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "room for it, found File too large" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


ERRORS = {
    "permission": (errno.EACCES, AccessDeniedError),
    "read-only": (errno.EROFS, AccessDeniedError),
    "no hard links": (errno.EPERM, AccessDeniedError),
    "quota": (errno.EDQUOT, StoreError),
    "stale mount": (errno.ESTALE, TransientStoreError),
    "disk": (errno.EIO, TransientStoreError),
    "too many open files": (errno.EMFILE, TransientStoreError),
    "no such thing": (errno.EOPNOTSUPP, StoreError),
}


@pytest.mark.parametrize("what", ERRORS)
def test_what_the_operating_system_refuses_has_its_type_and_names_the_object(store, monkeypatch, what):
    code, kind = ERRORS[what]

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    store.put_new("a/b", b"x")
    with monkeypatch.context() as broken:
        broken.setattr(os, "link", fail)
        with pytest.raises(kind) as caught:
            store.put_new("a/c", b"x")
        assert type(caught.value) is kind
        assert f"{store.url}/a/c" in said_by(caught.value)
        assert os.strerror(code) in said_by(caught.value)
    assert [path.name for path in (store.root / "a").iterdir()] == ["b"]
    with monkeypatch.context() as broken:
        broken.setattr(os, "scandir", fail)
        for use in (lambda: list(store.list()), lambda: list(store.folders("a/"))):
            with pytest.raises(kind):
                use()
    with monkeypatch.context() as broken:
        broken.setattr(Path, "stat", fail)
        broken.setattr(Path, "open", fail)
        for use in (store.stat, store.exists, store.read, store.open, store.fetch):
            with pytest.raises(kind):
                use("a/b")


def test_nobody_may_read_what_its_mode_forbids(store):
    store.put_new("a/b", b"x")
    code = f"""
import os
from pathlib import Path
from compalign_dagster.store import AccessDeniedError, LocalStore
store = LocalStore(Path({store.url!r}))
os.chmod(store.root / "a", 0)
if os.geteuid() == 0:
    os.chmod(store.root.parent, 0o755)
    for folder in store.root.parents[1:]:
        os.chmod(folder, folder.stat().st_mode | 0o5)
    os.setuid(65534)
for use in (store.read, store.exists, store.fetch, lambda _: list(store.list()), lambda _: store.put_new("a/c", b"")):
    try:
        use("a/b")
    except AccessDeniedError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    (store.root / "a").chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Permission denied. Mend") == 5


def test_a_name_that_no_file_can_have_is_not_there_and_cannot_be_published(store):
    for key in ("x" * 256, "ü" * 128, "a/" * 2100 + "b"):
        assert not store.exists(key)
        with pytest.raises(ObjectMissingError):
            store.read(key)
        with pytest.raises(StoreError, match="File name too long"):
            store.put_new(key, b"x")
    assert store.put_new("x" * 255, b"x")
    assert keys(store) == ["x" * 255]


def test_a_folder_where_an_object_should_be_is_not_taken_for_one(store):
    store.put_new("a/b", b"x")
    for key in ("a", "a/b/c"):
        with pytest.raises(StoreError, match="what lies there"):
            store.put_new(key, b"x")
    assert keys(store) == ["a/b"]
    assert [path.name for path in store.root.iterdir()] == ["a"]


def test_a_link_to_a_folder_is_not_followed_and_that_is_said_once(store, caplog):
    store.put_new("a/b", b"x")
    (store.root / "linked").symlink_to("a")
    (store.root / "self").symlink_to(".")
    (store.root / "c").symlink_to("a/b")
    for _ in range(2):
        assert keys(store) == ["a/b", "c"]
    assert caplog.text.count("link to a folder") == 2
