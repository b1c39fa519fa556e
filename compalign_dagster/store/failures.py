"""What a failed S3 request means, as an error that a person can read.

A message names the operation, the object's URL and the server's error code. Nothing else of a request or an answer
gets into it: those hold credentials, signatures and data. For that reason the client's own exception is not chained.
"""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from botocore import exceptions

from compalign_dagster.store.base import AccessDeniedError, StoreError, TransientStoreError, changed, missing

FAILURES = (
    exceptions.ClientError,
    exceptions.BotoCoreError,
    RecursionError,
)  # the last: it follows a redirect for ever


class StrangeAnswerError(exceptions.BotoCoreError):
    """A success without what every S3 server says with it: something between has answered, and nothing is known."""

    fmt = "an answer without {name}"


_DENIED = {
    "AccessDenied",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_NO_CREDENTIALS = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.ProfileNotFound,
    exceptions.SSOError,
    exceptions.TokenRetrievalError,
)
_BROKEN = (exceptions.ConnectionError, exceptions.HTTPClientError, exceptions.IncompleteReadError, OSError)
_PASSING = {"RequestTimeout", "SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded"}
_PASSING_STATUS = {408, 409, 425, 429}


def _answer(error: Exception) -> dict[str, Any]:
    """What the server answered; empty where it did not."""
    return getattr(error, "response", None) or {}


def status_of(error: Exception) -> int:
    """The HTTP status of an answer that is an error; 0 where there was no answer."""
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code_of(error: Exception) -> str:
    """The server's error code, or the kind of failure where there was no answer. Safe to show."""
    code = str(_answer(error).get("Error", {}).get("Code", "") or type(error).__name__)
    return code if re.fullmatch(r"[\w.-]{1,64}", code, re.ASCII) else str(status_of(error))


def is_refusal(error: Exception) -> bool:
    """Whether the server has answered the only attempt with a no: then nothing can have landed.

    After a retry inside the client an earlier attempt may have landed unseen, whatever the last answer is.
    """
    retries = _answer(error).get("ResponseMetadata", {}).get("RetryAttempts", 0)
    if retries or code_of(error) in {*_PASSING, "NoSuchUpload"}:
        return False
    return 300 <= status_of(error) < 500 and status_of(error) not in {*_PASSING_STATUS, 412}


def explain(error: Exception, operation: str, url: str, client: Any = None) -> StoreError:
    """The typed error for a failed request. Where it was read with If-Match, 412 means that the object changed."""
    what, code, status = f"{operation} {url}", code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return StoreError(
            what,
            expected="a bucket",
            found="NoSuchBucket",
            remedy="Create the bucket, or mend the URL or the endpoint (AWS_ENDPOINT_URL).",
        )
    if 300 <= status < 400 or isinstance(error, RecursionError):
        return StoreError(
            what,
            expected="an S3 server",
            found="a redirect",
            remedy="Mend AWS_ENDPOINT_URL (often https instead of http) or the region.",
        )
    if isinstance(error, StrangeAnswerError):
        return StoreError(
            what,
            expected="an S3 server",
            found=str(error),
            remedy="Check the endpoint (AWS_ENDPOINT_URL) and what stands between: a proxy or a login page answers.",
        )
    if status == 404:
        return missing(what)
    if status == 412:
        return changed(what)
    if isinstance(error, _NO_CREDENTIALS) or code in _DENIED or status in {401, 403}:
        return AccessDeniedError(
            what,
            expected="credentials that may do this",
            found=code,
            remedy="Check AWS_ACCESS_KEY_ID, AWS_PROFILE or the role, its policy for this bucket, and the clock.",
        )
    if status >= 500 or status in _PASSING_STATUS or code in _PASSING or _is_broken(error):
        return TransientStoreError(
            what,
            expected="an answer",
            found=f"{code} from {_host(client)} after all retries",
            remedy="Nothing is damaged: check that the endpoint is up and can be reached, then run again.",
        )
    return StoreError(
        what,
        expected="success",
        found=code,
        remedy="Check region, endpoint (AWS_ENDPOINT_URL), credentials and what the server supports.",
    )


def said(answer: dict[str, Any], *names: str) -> tuple[Any, ...]:
    """What an answer says under these names.

    Raises:
        StrangeAnswerError: when it lacks one.
    """
    for name in names:
        if name not in answer:
            raise StrangeAnswerError(name=name)
    return tuple(answer[name] for name in names)


def make_client(make: Callable[[], Any]) -> Any:
    """What `make` makes: a client. Half a pair of keys, an unknown profile or an endpoint that is no URL stop it."""
    try:
        return make()
    except (*FAILURES, ValueError) as error:
        raise explain(error, "make a client for", "s3://") from None


def _is_broken(error: Exception) -> bool:
    return isinstance(error, _BROKEN) and not isinstance(error, exceptions.SSLError)


def _host(client: Any) -> str:
    """The server's host and port; an endpoint's user information is left out."""
    address = urlsplit(client.meta.endpoint_url if client is not None else "")
    port = f":{address.port}" if address.port else ""
    return f"{address.hostname or 'the server'}{port}"
