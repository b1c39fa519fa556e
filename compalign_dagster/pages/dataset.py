"""What is drawn of a version of the dataset when it is published: its page, a plot, a contact sheet of kept pairs.

What belongs here: which views of a version its page holds. What does not: how the page looks (`filtered.py`), and
what is drawn when somebody asks (`browse.py`).
"""

from compalign_dagster.pages.browse import COUNTS_SQL, address, pair_address
from compalign_dagster.pages.cards import Card
from compalign_dagster.pages.filtered import Section, Shown, filtered_page, histogram_picture
from compalign_dagster.pages.images import contact_sheet
from compalign_dagster.pages.pictures import cards
from compalign_dagster.selection import views
from compalign_dagster.selection.ladder import histogram
from compalign_dagster.selection.pairs import index_keys, with_captions
from compalign_dagster.selection.reasons import CASCADE_REJECT
from compalign_dagster.selection.version import Version
from compalign_dagster.selection.views import GROUPS, KEPT, NEAREST, RANDOM, WORST, View
from compalign_dagster.store import Store

_SHOWN = 8  # pairs of each view: fourteen groups of three views stay below 8 MB
_SHEET = 24


def dataset_views(version: Version, landing: Store, name: str) -> dict[str, bytes]:
    """Files beside the version that `name` (the beginning of its work key) will stand for.

    `page.html` and `plot.png`, and `preview.jpg` where anything is kept.
    """
    rewards = histogram(version)
    sections = [section(version, landing, name, group) for group in GROUPS if views.size(version, group)]
    counts = (f"compalign browse --dataset {name}", COUNTS_SQL)
    sheet = [card.image for card in _cards(version, landing, name, View(KEPT, RANDOM, _SHEET))]
    return {
        "page.html": filtered_page(version.facts, rewards, sections, counts),
        "plot.png": histogram_picture(rewards, version.facts),
        **({"preview.jpg": contact_sheet(sheet, columns=8)} if sheet else {}),
    }


def section(version: Version, landing: Store, name: str, group: str) -> Section:
    """A group with pairs drawn at random, the lowest rewards, and those nearest to the cut."""
    seed = View(group).seed
    titles = {RANDOM: f"At random (seed {seed})", WORST: "Lowest rewards", NEAREST: "Nearest to the cut"}
    if group == CASCADE_REJECT:
        titles = {RANDOM: titles[RANDOM]}  # they have no reward
    shown = []
    for order, title in titles.items():
        view = View(group, order, _SHOWN)
        pairs = _cards(version, landing, name, view)
        shown.append(Shown(title, pairs, view.command(name), views.sql(version, view)))
    return Section(group, views.size(version, group), shown, address(name, group))


def _cards(version: Version, landing: Store, name: str, view: View) -> list[Card]:
    rows = with_captions(views.rows(version, view), version.store, index_keys(version)).to_dicts()
    return cards(landing, rows, lambda row: pair_address(name, row["pair_id"]))
