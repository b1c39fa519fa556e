import random

from compalign_dagster.annotation.assemble import comparisons_of
from compalign_dagster.annotation.schema import Judgement
from compalign_dagster.samples.captions import Quality
from compalign_dagster.samples.labelers import LABELERS, judge

CAPTIONS = {
    "a": Quality(1.0, 1.0, 1.0, 1.0),
    "b": Quality(5.0, 5.0, 4.0, 5.0),
    "c": Quality(5.0, 2.0, 2.0, 4.0),
    "d": Quality(3.0, 4.0, 4.0, 4.0),
    "e": Quality(5.0, 5.0, 4.0, 5.0),
}


def judged(labeler, times: int = 200) -> list[dict]:
    return [judge(labeler, CAPTIONS, random.Random(seed)) for seed in range(times)]


def test_every_judgement_follows_the_contract_and_ranks_every_caption():
    for labeler in LABELERS:
        for judgement in judged(labeler, 20):
            valid = Judgement.model_validate(judgement)
            assert sorted(name for place in valid.ranking for name in place) == list(CAPTIONS)


def test_labelers_are_mostly_right_but_not_always():
    for labeler in LABELERS:
        truth = [
            CAPTIONS[better].overall > CAPTIONS[worse].overall
            for judgement in judged(labeler)
            for better, worse, tie in comparisons_of(judgement["ranking"])
            if not tie and {better, worse} != {"b", "e"}
        ]
        assert 0.8 < sum(truth) / len(truth) < 1


def test_equal_captions_tie_more_often_than_different_ones():
    ties = {"be": 0, "ab": 0}
    for judgement in judged(LABELERS[1]):
        for better, worse, tie in comparisons_of(judgement["ranking"]):
            pair = "".join(sorted((better, worse)))
            if pair in ties:
                ties[pair] += tie
    assert ties["be"] > 10 > ties["ab"]


def test_a_severe_labeler_gives_lower_ratings():
    def mean(labeler) -> float:
        given = [rating for item in judged(labeler) for each in item["ratings"].values() for rating in each.values()]
        return sum(given) / len(given)

    by_severity = sorted(LABELERS, key=lambda labeler: labeler.severity)
    means = [mean(labeler) for labeler in by_severity]
    assert means == sorted(means, reverse=True)
