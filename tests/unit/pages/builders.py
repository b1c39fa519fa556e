"""Generated pictures, hostile captions and the arguments of every page."""

import functools
import io

from PIL import Image, ImageDraw

from compalign_dagster.pages.annotations import annotations_page
from compalign_dagster.pages.cards import Card, gallery
from compalign_dagster.pages.crawl import crawl_page
from compalign_dagster.pages.diff import diff_page
from compalign_dagster.pages.evaluation import eval_page
from compalign_dagster.pages.evidence import NOT_MEASURED
from compalign_dagster.pages.filtered import Section, Shown, filtered_page
from compalign_dagster.pages.index import index_page
from compalign_dagster.pages.render import render
from compalign_dagster.pages.reward import reward_page
from compalign_dagster.pages.shadow import shadow_page
from compalign_dagster.pages.what_if import Group, Placed, what_if_page
from compalign_dagster.selection.diff import CAUSES

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "\u202egnp.exe\u202c",
    "nul \x00 escape \x1b[31m bell \x07",
    "lone surrogate \ud800 here",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f389",
    "mathtext $\\frac{$",
]
HOSTILE = [" ".join(NASTY[:4]), " ".join(NASTY[4:]), "x" * 10_000, ""]


def picture(seed: int = 0, size: tuple[int, int] = (320, 240)) -> bytes:
    image = Image.new("RGB", size, (seed * 37 % 256, 120, 200))
    ImageDraw.Draw(image).ellipse((10, 10, size[0] // 2, size[1] // 2), fill=(250, seed * 11 % 256, 40))
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


@functools.cache
def noise(side: int = 400) -> bytes:
    """A picture that compresses badly."""
    image = Image.effect_noise((side, side), 120).convert("RGB")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def estimate(value: float, half: float = 0.02, n: int = 500) -> dict:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def cards(captions: list[str], count: int | None = None) -> list[Card]:
    wanted = count or len(captions)
    return [
        Card(picture(at), captions[at % len(captions)], reward=1 - at / 10, note=captions[at % len(captions)])
        for at in range(wanted)
    ]


def shard(name: str = "sample/00000.tar", **changes: object) -> dict:
    row = {
        "shard": name, "corpus": "sample", "status": "ok", "bytes": 1000, "sha256": "ab",
        "members": 30, "used": 24,
        "quarantined_members": 2, "ignored": 4, "captions": 11, "pairs": 10, "quarantined_captions": 1,
        "disagreements": 0,
    }  # fmt: skip
    return row | changes


@functools.cache
def crawl(text: str = "plain") -> bytes:
    row = {
        "shard": text, "key": text, "member": text, "unit": "member", "caption_index": None, "offset": 512,
        "reason": "image_truncated", "detail": text,
    }  # fmt: skip
    summary = {
        "batch": "batch-00001", "shards": [shard(text)],
        "quarantined_by_reason": {"image_truncated": 2, text: 1},
        "removed": [text],
    }  # fmt: skip
    return crawl_page(summary, cards([text]), [row])


@functools.cache
def annotations(text: str = "plain") -> bytes:
    facts = {"images": 2, "captions": 4, "comparisons": 3, "images_by_split": {text: 2}, "problems": [text]}
    captions = [{"rank": 1, "caption": text, "source": text}, {"rank": 1, "caption": "b", "source": "human"}]
    return annotations_page(facts, [{"image": picture(), "labeler": text, "captions": captions}])


def evidence(name: str = "plain") -> dict:
    """`metrics["evidence"]` in small, with a check that failed and one that was not measured."""
    figures = {figure: estimate(0.7) for figure in ("preference_accuracy", "tau_c", "human_auc", "cross_image_auc")}
    return {
        "scorers": {
            "reward": figures,
            "cosine": {**figures, "reward_minus_this": estimate(0.08), "tau_c_minus_this": estimate(0.05)},
            "itm": dict.fromkeys(figures, NOT_MEASURED),
        },
        "by_source": {name: {"reward": estimate(0.61), "cosine": estimate(0.52), "itm": NOT_MEASURED}},
        "by_criterion": {"context": {"reward": NOT_MEASURED}},
        "ceiling": estimate(0.83),
        "one_labeler_against_rest": {name: {"agreement": estimate(0.81)}},
        "calibration": {
            "ece": estimate(0.04),
            "bins": [
                {"predicted": 0.2, "observed": estimate(0.25), "n": 40},
                {"predicted": 0.9, "observed": NOT_MEASURED | {"value": 1.0}, "n": 9},
            ],
        },
        "across_images": {"matched": {"within": estimate(0.97), "across": estimate(0.96), "kept": estimate(0.98)}},
        "shortcuts": {
            "fluent_wrong": {"passed": True, "figure": estimate(0.9), "least": 0.5, "meaning": name},
            "text_on_blank": {"passed": False, "figure": NOT_MEASURED, "least": 0.5, "meaning": "a page of text"},
        },
    }  # fmt: skip


@functools.cache
def reward(text: str = "plain") -> bytes:
    metrics = {
        "preference_accuracy": estimate(0.7), "cross_image_auc": estimate(0.9), "reward_spread": 1.0,
        "baselines": {name: {"preference_accuracy": estimate(0.6)} for name in ("cosine", text)},
        "evidence": evidence(text),
    }  # fmt: skip
    curves = {
        "pretrain": [3.0, 2.0, 1.0], "train": [0.8, 0.6], "best": {"step": 2}, text: [1.0, 2.0],
        "terms": {"preference": [0.7, 0.6], "rating": [0.0, 0.0], text: [0.1, 0.2]},
        "validation": [{"step": 2, "preference": 0.6, "anchor": 0.3, "rating": None, "accuracy": 0.7, "total": 0.9}],
    }  # fmt: skip
    return reward_page(metrics, curves, [(text, True, text), ("another", False, "0.5")])


@functools.cache
def filtered(text: str = "plain") -> bytes:
    facts = {
        "pairs": 10, "quarantined": 1, "kept": 3, "dropped": 6,
        "dropped_by_reason": {"below_cut": 5, text: 1},
        "budgets": [
            {"budget": text, "fraction": "0.3", "n": 9, "k": 3, "kept": 3, "short": False, "cut": 0.5,
             "first_dropped": 0.4},
            {"budget": "other", "fraction": None, "n": 0, "k": 0, "kept": 0, "short": False, "cut": None,
             "first_dropped": None},
        ],
        "corpora": {text: {"pairs": 5, "kept": 2}, "other": {"pairs": 5, "kept": 1}}, "model_version": text,
    }  # fmt: skip
    histogram = {"edges": [0.0, 0.5, 1.0], "kept": [0, 3], "dropped": [6, 0]}
    shown = [Shown(text, cards([text]), text, text)]
    sections = [Section("kept", 3, shown, "/browse/a"), Section("below_cut", 5, shown), Section(text, 1, shown)]
    return filtered_page(facts, histogram, sections, (text, text))


@functools.cache
def browse(text: str = "plain") -> bytes:
    group = {"pairs": 60, "meaning": text, "ladder": [
        {"link": "/browse/a", "pairs": 30, "reward": 3e38, "pair_id": ""},
        {"link": "/browse/a", "pairs": 30, "reward": None, "pair_id": "a3"},
    ]}  # fmt: skip
    return render(
        "browse.html", name=text, group=text, groups=[(text, 60, "/browse/a", text)], **group,
        gallery=gallery(cards([text])), next="/browse/a", whole="/browse/a", command=text, sql=text,
    )  # fmt: skip


@functools.cache
def pair(text: str = "plain") -> bytes:
    row = {"decision": text, "meaning": text, "group": "/browse/a", "place": [(text, text)], "figures": [("url", text)]}
    return render(
        "pair.html", name=text, pair_id="ab" * 16, count=1, gallery=gallery(cards([text])), occurrences=[row],
        command=text, sql=text,
    )  # fmt: skip


def report(reward: float = 0.7, cosine: float = 0.6, reward_r1: float = 0.2, random_r1: float = 0.1) -> dict:
    def arm(value: float) -> dict:
        recalls = {"r1": estimate(value), "r5": estimate(value * 2), "r10": estimate(value * 3)}
        return {"pairs": 100, "image_to_text": recalls, "text_to_image": recalls}

    return {
        "sample": True,
        "agreement": {
            "cosine": {"preference_accuracy": estimate(cosine)},
            "reward": {"preference_accuracy": estimate(reward), "kendall_tau_b": estimate(0.4)},
        },
        "downstream": {"arms": {"random": arm(random_r1), "reward": arm(reward_r1)}, "steps": 10},
        "provenance": {"model_version": "ab" * 32},
    }


@functools.cache
def evaluation(text: str = "plain") -> bytes:
    found = report()
    found |= {"data": text, "provenance": {text: text}, "notes": [text]}
    found["agreement"][text] = {"preference_accuracy": estimate(0.55)}
    found["downstream"]["arms"][text] = found["downstream"]["arms"]["random"]
    return eval_page(found)


@functools.cache
def index(text: str = "plain") -> bytes:
    entry = {
        "kind": text,
        "partition": text,
        "created": text,
        "data_version": text,
        "links": [(text, "/a/page.html")],
    }
    return index_page([entry])


@functools.cache
def shadow(text: str = "plain") -> bytes:
    rewards = {
        "mean": 0.1, "std": 1.0, "quantiles": [(0.0, -1.0), (0.5, 0.0), (1.0, 2.0)], "cut": 0.5,
        "edges": [-1.0, 0.5, 2.0], "kept": [0, 3], "dropped": [7, 0],
    }  # fmt: skip
    facts = {
        "candidate": text, "promoted": text, "policy": {text: 1}, "refused": {text: 2}, "device": text,
        "population": 1000, "sampled": 12, "compared": 10, "strata": 4,
        "candidate_rewards": rewards, "promoted_rewards": rewards,
        "spearman": estimate(0.9), "kendall_tau_b": estimate(0.8), "kept_overlap": estimate(0.7),
        "enters": {"pairs": 1, "of_the_crawl": 100}, "leaves": {"pairs": 1, "of_the_crawl": 100},
        "cost": {"pairs": 1000, "seconds_per_pair": 0.01, "hours": 0.003},
    }  # fmt: skip
    return shadow_page(facts, {"enters": cards([text]), "leaves": cards([text])})


def group(text: str, count: int, shown: bytes | None = None) -> Group:
    pairs = [
        Placed(
            Card(shown or picture(at), text, 1 - at / 10, text, f"{at:032x}", f"/pair/{at}"),
            (at + 0.5) / 100,
        )
        for at in range(count)
    ]
    return Group(pairs, f"compalign what-if {text}", f"select '{text}'")


def curve(text: str) -> list[dict]:
    rows = []
    for at in range(0, 101, 5):
        groups = [
            {"dimension": dimension, "group": name, "candidates": 50, "kept": at // 2}
            for dimension in ("corpus", "domain", "caption_length", "resolution")
            for name in (text, "other", "", "/Others")[: 4 if dimension == "domain" else 2]
        ]
        budget = {"budget": text, "fraction": str(at / 100), "n": 100, "k": at, "kept": at, "short": at == 100}
        rows.append(
            {"pairs": 100, "kept": at, "mean_reward": 2 - at / 50 if at else None, "budgets": [budget],
             "groups": groups, "expected_fit": 0.9 - at / 300 if at else None, "human_fit": at * 0.8,
             "with_human_fit": at}
        )  # fmt: skip
    return rows


@functools.cache
def what_if(text: str = "plain", count: int = 20, shown: bytes | None = None) -> bytes:
    version = {"name": "abcdef012345", "budget": text, "n": 100, "kept": 30, "policy": {text: text}}
    cards = {name: group(text, count, shown) for name in ("above", "below", "rungs")}
    return what_if_page(version, curve(text), cards)


@functools.cache
def diff(text: str = "plain", count: int = 2, shown: bytes | None = None) -> bytes:
    about = {
        "a": {"name": "aaaa", "kept": 10, "pairs": 100}, "b": {"name": "bbbb", "kept": 12, "pairs": 100},
        "shards": {"new": 1, "removed": 0, "replaced": 0}, "policy": [(text, text, {text: 1}, text)],
        "models": [text, "other"],
    }  # fmt: skip
    side = {
        "pairs": 2 * len(CAUSES),
        "by_cause": dict.fromkeys(CAUSES, 2),
        "by_corpus": {text: 2, "o": 1},
        "mean_reward": 0.5,
    }
    cards = [item.card for item in group(text, count, shown).pairs]
    galleries = {(of, cause): cards for of in ("entered", "left") for cause in CAUSES}
    rewards = {"entered": ([0.0, 1.0, 2.0], [1, 1]), "left": ([0.0, 1.0], [2])}
    return diff_page(about, {"entered": side, "left": side}, rewards, galleries)


PAGES = [crawl, annotations, reward, filtered, browse, pair, evaluation, index, shadow, what_if, diff]
