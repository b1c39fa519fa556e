import json
from pathlib import Path

import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import DEFAULTS, GIVEN, reward_config, sources, table_markdown
from compalign_dagster.reward.model import backbone


def test_each_backbone_brings_its_defaults_and_settings_win_over_them():
    assert reward_config({"backbone": "blip"}).image_size == 224
    assert reward_config({"backbone": "blip", "image_size": 384}).image_size == 384
    assert reward_config() == reward_config({"backbone": "blip-tiny"})


def test_a_configuration_survives_its_own_dictionary():
    for name in DEFAULTS:
        config = reward_config({"backbone": name})
        assert reward_config(config.as_dict()) == config


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "clip"}, "'clip'"),
        ({"backbone": ["offline"]}, "backbone.*'offline'"),
        ({"stepps": 3}, "'stepps'"),
        ({"steps": 0}, "'steps'.*at least 1"),
        ({"steps": "many"}, "'steps'.*'many'"),
        ({"steps": True}, "'steps'.*True"),
        ({"near_misses": 1}, "'near_misses'"),
        ({"frozen_share": 1.5}, "'frozen_share'.*from 0 to 1"),
        ({"hidden_size": 100, "heads": 3}, "'hidden_size'.*multiple of heads"),
        ({"image_size": 0}, "'image_size'.*at least 1"),
        (
            dict.fromkeys(("preference_weight", "anchor_weight", "rating_weight", "criteria_weight"), 0),
            "at least one weight",
        ),
        ({"lr": float("inf")}, "'lr'"),
        ({"lr": float("nan")}, "'lr'"),
        ({"precision": "fp8"}, "'precision'.*fp32, bf16, fp16"),
        ({"labeler_weights": {"a": -1}}, "'labeler_weights'.*at least 0"),
        ({"labeler_weights": {"a": float("nan")}}, "'labeler_weights'.*at least 0"),
        ({"labeler_weights": {"a": "much"}}, "'labeler_weights'.*number"),
        ({"labeler_weights": ["a"]}, "'labeler_weights'.*names of labelers"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, said):
    with pytest.raises(InputError, match=said):
        reward_config(settings)


def test_an_integer_is_welcome_where_a_number_is_asked_for():
    assert reward_config({"anchor_weight": 2}).anchor_weight == 2.0


def test_the_order_in_which_labelers_are_named_does_not_matter():
    first, second = (
        reward_config({"labeler_weights": weights}) for weights in ({"a": 1, "b": 0.5}, {"b": 0.5, "a": 1})
    )
    assert first == second
    assert json.dumps(first.as_dict()) == json.dumps(second.as_dict())


def test_every_setting_says_where_its_value_comes_from():
    for name, own in DEFAULTS.items():
        found = sources(reward_config({"backbone": name}))
        assert found.keys() == reward_config().as_dict().keys()
        assert all(found.values())
        assert GIVEN not in {found[setting] for setting in found if setting != "backbone"}
        assert {setting: found[setting] for setting in own} == {setting: own[setting].source for setting in own}
    assert "ImageReward" in sources(reward_config({"backbone": "blip"}))["lr"]
    changed = sources(reward_config({"backbone": "blip", "lr": 1e-4, "labeler_weights": {"a": 0.5}}))
    assert [name for name, source in changed.items() if source == GIVEN] == ["backbone", "lr", "labeler_weights"]


def test_the_page_of_settings_is_that_of_the_code():
    page = (Path(__file__).parents[3] / "docs" / "reward-settings.md").read_text()
    assert page == table_markdown(), "run: python -m compalign_dagster.reward.config > docs/reward-settings.md"


def test_what_the_paper_does_not_say_is_marked_unknown():
    found = sources(reward_config({"backbone": "blip"}))
    for name in ("lr", "frozen_share", "batch_images", "max_caption_tokens", "anchor_weight", "steps"):
        assert "unknown in the paper" in found[name], name


def test_an_unknown_backbone_in_a_folder_is_an_input_error():
    with pytest.raises(InputError, match="'clip'"):
        backbone("clip")
