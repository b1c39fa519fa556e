"""Every reason for which something is quarantined while a shard is indexed, with its meaning.

The codes are a public interface: more may be added, none changes its meaning.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why a shard, a member or a caption was refused."""

    SHARD_EMPTY = "shard_empty"
    NOT_A_TAR = "not_a_tar"
    END_MISSING = "end_missing"
    ZERO_GAP = "zero_gap"
    GZIP_DAMAGED = "gzip_damaged"
    GZIP_TRUNCATED = "gzip_truncated"
    GZIP_TRAILING = "gzip_trailing"
    SHARD_TOO_LARGE = "shard_too_large"
    MEMBERS_TOO_MANY = "members_too_many"
    HEADER_DAMAGED = "header_damaged"
    MEMBER_TRUNCATED = "member_truncated"
    MEMBER_TOO_LARGE = "member_too_large"
    MEMBER_NOT_A_FILE = "member_not_a_file"
    NAME_UNSAFE = "name_unsafe"
    KEY_DUPLICATE = "key_duplicate"
    JSON_MALFORMED = "json_malformed"
    CAPTIONS_TOO_MANY = "captions_too_many"
    CAPTION_MISSING = "caption_missing"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_FORMAT_UNSUPPORTED = "image_format_unsupported"
    IMAGE_EXTRA = "image_extra"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNUSABLE = "image_unusable"
    CAPTION_EMPTY = "caption_empty"
    CAPTION_TOO_LONG = "caption_too_long"
    CAPTION_NOT_UTF8 = "caption_not_utf8"
    CAPTION_NOT_TEXT = "caption_not_text"


MEANINGS: dict[Reason, str] = {
    Reason.SHARD_EMPTY: "the shard has no bytes, or no members",
    Reason.NOT_A_TAR: "no tar header was found anywhere in the shard",
    Reason.END_MISSING: "the shard stops without tar's end marker, so members may be missing",
    Reason.ZERO_GAP: "members follow a run of zeros: joined archives, or a hole in the file",
    Reason.GZIP_DAMAGED: "the gzip stream is damaged, or is none; nothing behind that place can be unpacked",
    Reason.GZIP_TRUNCATED: "the gzip stream ends before its end marker",
    Reason.GZIP_TRAILING: "bytes follow the gzip stream that are no gzip; they were not read",
    Reason.SHARD_TOO_LARGE: "the shard unpacks to more bytes than the budget; the rest was not read",
    Reason.MEMBERS_TOO_MANY: "the shard has more members than the budget; the rest was not read",
    Reason.HEADER_DAMAGED: "a member header is damaged; bytes up to the next good header were skipped",
    Reason.MEMBER_TRUNCATED: "the member's bytes end before the size its header gives",
    Reason.MEMBER_TOO_LARGE: "the member is larger than the budget and was not read",
    Reason.MEMBER_NOT_A_FILE: "a link, device or sparse file where an image or captions were expected",
    Reason.NAME_UNSAFE: "the member's name is absolute, climbs, has control characters or is not UTF-8",
    Reason.KEY_DUPLICATE: "a second sample with a key that the shard already has",
    Reason.JSON_MALFORMED: "the .json is not a JSON object in UTF-8, or its `captions` is not a list",
    Reason.CAPTIONS_TOO_MANY: "a `captions` list, or the captions of a shard together, are beyond the budget",
    Reason.CAPTION_MISSING: "an image without any caption",
    Reason.IMAGE_UNDECODABLE: "called an image, but its bytes are not one",
    Reason.IMAGE_TRUNCATED: "the image's bytes end before its pixels do",
    Reason.IMAGE_TOO_LARGE: "more pixels than the budget; it was not decoded",
    Reason.IMAGE_FORMAT_UNSUPPORTED: "an image, in a format that is not read",
    Reason.IMAGE_EXTRA: "a second image, in another format, of a sample that has one",
    Reason.IMAGE_MISSING: "a caption without an image",
    Reason.IMAGE_UNUSABLE: "a caption whose image was quarantined (its own row says why)",
    Reason.CAPTION_EMPTY: "a caption of nothing but white space",
    Reason.CAPTION_TOO_LONG: "a caption longer than the budget",
    Reason.CAPTION_NOT_UTF8: "a caption that is not valid UTF-8",
    Reason.CAPTION_NOT_TEXT: "a caption that is null, a number, a list or an object",
}


RETRYABLE = frozenset(
    {
        Reason.NOT_A_TAR,
        Reason.GZIP_DAMAGED,
        Reason.GZIP_TRAILING,
        Reason.SHARD_TOO_LARGE,
        Reason.MEMBERS_TOO_MANY,
        Reason.HEADER_DAMAGED,
        Reason.MEMBER_TRUNCATED,
        Reason.MEMBER_TOO_LARGE,
        Reason.MEMBER_NOT_A_FILE,
        Reason.JSON_MALFORMED,
        Reason.CAPTIONS_TOO_MANY,
        Reason.IMAGE_UNDECODABLE,
        Reason.IMAGE_TRUNCATED,
        Reason.IMAGE_TOO_LARGE,
        Reason.IMAGE_FORMAT_UNSUPPORTED,
        Reason.CAPTION_TOO_LONG,
        Reason.CAPTION_NOT_UTF8,
    }
)
"""Reasons that a larger budget or a better reader may take away. The others are facts about the shard."""
