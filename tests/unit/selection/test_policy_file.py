"""A policy file reads back as it was written; every wrong field is named in one line."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compalign_dagster.errors import InputError
from compalign_dagster.selection import policy_file
from compalign_dagster.selection.policy import Policy
from compalign_dagster.selection.sampling import Sampling

fractions = st.decimals(0, 1, allow_nan=False, places=6)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
policies = st.builds(
    Policy,
    keep_fraction=fractions,
    per_corpus=st.dictionaries(texts.map(lambda text: f"a{text}"), fractions, max_size=3),
    count_per_corpus=st.dictionaries(texts.map(lambda text: f"b{text}"), st.integers(0, 10**12), max_size=3),
    floors=st.dictionaries(
        st.sampled_from(["human_fit", "cosine", "accuracy"]), st.floats(allow_nan=False, allow_infinity=False)
    ),
    reward_floor=st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
    languages=st.lists(st.sampled_from(["en", "de", "fr"])),
    unknown_language=st.sampled_from(["keep", "drop"]),
    sampling=st.none()
    | st.builds(
        Sampling, floor=st.floats(-1e308, 0, width=64), full=st.floats(1e-9, 1e307), seed=st.integers(0, 2**63 - 1)
    ),
    caption_patterns=st.lists(st.sampled_from([r"^\d+$", "buy now", '"quoted"', "\\\\", "#", "\x7f", "日本"])),
    most_per_domain=st.none() | st.integers(1, 10**9),
    most_per_duplicate_group=st.none() | st.integers(1, 10**9),
    most_per_semantic_cluster=st.none() | st.integers(1, 10**9),
)


@given(policies)
def test_what_is_written_reads_back_as_the_same_policy(policy):
    assert policy_file.parse(policy_file.written(policy).encode(), "p.toml", toml=True) == policy
    dumped = json.dumps(policy.model_dump(mode="json"))
    assert policy_file.parse(dumped.encode(), "p.json", toml=False) == policy


def test_every_field_is_explained_in_what_is_written():
    text = policy_file.written(Policy(keep_fraction="0.3"))
    for name, field in Policy.model_fields.items():
        assert name in text
        assert field.description in text


def test_numbers_are_the_decimals_that_are_written():
    for text, toml in (
        ("keep_fraction = 0.1", True),
        ('{"keep_fraction": 0.1}', False),
        ('{"keep_fraction": "0.1"}', False),
    ):
        assert str(policy_file.parse(text.encode(), "p", toml=toml).keep_fraction) == "0.1"


WRONG = {
    '{"keep_fraction": 1.2}': "from 0 to 1",
    '{"keep_fraction": NaN}': "no number",
    '{"keep_fraction": 0.3, "keep_count": 3}': "keep_fraction or keep_count",
    "{}": "keep_fraction or keep_count",
    '{"keep_fraction": 0.3, "keep_fraction": 0.4}': "twice",
    '{"keep_fracton": 0.3, "keep_count": 1}': "did you mean keep_fraction",
    '{"keep_fraction": true}': "true or false",
    '{"keep_count": true}': "true or false",
    '{"keep_count": -1}': "'keep_count' should be greater",
    '{"keep_count": 1.5}': "'keep_count' should be a valid integer",
    '{"keep_fraction": 0.3, "reward_floor": "x"}': "'reward_floor' should be a valid number",
    '{"keep_fraction": 0.3, "floors": {"reward": 1}}': "reward_floor",
    '{"keep_fraction": 0.3, "floors": {"nonsense": 1}}': "nonsense",
    '{"keep_fraction": 0.3, "languages": "en"}': "'languages' should be a valid tuple",
    '{"keep_fraction": 0.3, "unknown_language": "maybe"}': "'keep' or 'drop'",
    '{"keep_fraction": 0.3, "caption_patterns": ["("]}': "regular expression",
    '{"keep_fraction": 0.3, "caption_patterns": ["(?=x)"]}': "look-around",
    '{"keep_fraction": 0.3, "most_per_domain": 0}': "'most_per_domain' should be greater",
    '{"keep_fraction": 0.3, "most_per_duplicate_group": 0}': "'most_per_duplicate_group' should be greater",
    '{"keep_fraction": 0.3, "most_per_semantic_cluster": 0}': "'most_per_semantic_cluster' should be greater",
    '{"keep_fraction": 0.3, "per_corpus": {"web": 2}}': "keep fraction of web",
    '{"keep_fraction": 0.3, "per_corpus": [1]}': "'per_corpus' should be a valid dictionary",
    '{"keep_fraction": 0.3, "count_per_corpus": {"web": -2}}': "at least 0",
    '{"keep_fraction": 0.3, "per_corpus": {"w": 0.1}, "count_per_corpus": {"w": 2}}': "both for w",
    '{"keep_fraction": 0.3, "sampling": {"floor": 1, "full": 1}}': "'sampling' should be a floor below full",
    '{"keep_fraction": 0.3, "sampling": {"floor": 2, "full": 1}}': "'sampling' should be a floor below full",
    '{"keep_fraction": 0.3, "sampling": {"floor": -1.7e308, "full": 1.7e308}}': "'sampling' should be",
    '{"keep_fraction": 0.3, "sampling": {"floor": "nan", "full": 1}}': "'sampling.floor' should be a finite number",
    '{"keep_fraction": 0.3, "sampling": {"floor": 0, "full": 1e999}}': "'sampling.full' should be a finite number",
    '{"keep_fraction": 0.3, "sampling": {"floor": 0, "full": 1, "seed": -1}}': "'sampling.seed' should be greater",
    '{"keep_fraction": 0.3, "sampling": {"floor": 0, "full": true}}': "true or false",
    '{"keep_fraction": 0.3, "sampling": {"floor": 0}}': "'sampling.full' field required",
    '{"keep_fraction": 0.3, "sampling": {"floor": 0, "full": 1, "sed": 1}}': "'sampling.sed' extra",
    '{"keep_fraction": 0.3, "version": 99}': "'version' should be less",
    "[]": "list where fields were expected",
    "keep: 0.3": "JSON",
    "[" * 100_000: "JSON",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:50])
def test_a_wrong_file_is_refused_with_one_line_that_names_the_field(text):
    with pytest.raises(InputError) as caught:
        policy_file.parse(text.encode(), "p.json", toml=False)
    said = str(caught.value)
    assert WRONG[text] in said
    assert "\n" not in said
    assert said.startswith("policy p.json: ")


def test_all_wrong_fields_are_named_together():
    with pytest.raises(InputError) as caught:
        policy_file.parse(b'{"keep_count": -1, "most_per_domain": 0, "x": 1}', "p", toml=False)
    for name in ("keep_count", "most_per_domain", "'x'"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "text", ["keep_fraction = nan", "keep_fraction = inf", "keep_fraction = 0.3\nkeep_fraction = 1", "="]
)
def test_a_wrong_toml_file_is_refused(text):
    with pytest.raises(InputError, match=r"policy p\.toml"):
        policy_file.parse(text.encode(), "p.toml", toml=True)


def test_what_cannot_be_read_is_refused(tmp_path):
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (1 << 21))
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (large, binary, tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match="policy"):
            policy_file.read(path)


def test_a_value_from_a_file_cannot_steer_a_terminal():
    with pytest.raises(InputError) as caught:
        policy_file.parse(json.dumps({"\x1b[2J": 1, "unknown_language": "\x1b]0;x\x07" * 99}).encode(), "p", toml=False)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1500


def test_differences_name_fields_and_whether_lists_are_made_again():
    old = Policy(keep_fraction="0.3", most_per_domain=3)
    new = Policy(keep_fraction="0.2", reward_floor=0.5, most_per_semantic_cluster=4)
    found = policy_file.differences(old, new)
    assert [(item.field, item.old, item.new, item.remakes_lists) for item in found] == [
        ("version", 2, 3, False),
        ("keep_fraction", "0.3", "0.2", False),
        ("reward_floor", None, 0.5, True),
        ("most_per_domain", 3, None, False),
        ("most_per_semantic_cluster", None, 4, False),
    ]
    assert policy_file.differences(old, old) == []
