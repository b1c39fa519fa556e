import pytest

from compalign_dagster.errors import InputError
from compalign_dagster.reward.config import DEFAULTS, reward_config
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
        ({"stepps": 3}, "'stepps'"),
        ({"steps": 0}, "'steps'.*at least 1"),
        ({"steps": "many"}, "'steps'.*'many'"),
        ({"steps": True}, "'steps'.*True"),
        ({"near_misses": 1}, "'near_misses'"),
        ({"frozen_share": 1.5}, "'frozen_share'.*from 0 to 1"),
        ({"hidden_size": 100, "heads": 3}, "'hidden_size'.*multiple of heads"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings, said):
    with pytest.raises(InputError, match=said):
        reward_config(settings)


def test_an_integer_is_welcome_where_a_number_is_asked_for():
    assert reward_config({"anchor_weight": 2}).anchor_weight == 2.0


def test_an_unknown_backbone_in_a_folder_is_an_input_error():
    with pytest.raises(InputError, match="'clip'"):
        backbone("clip")
