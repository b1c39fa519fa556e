"""What is known to be wrong with a version, in sentences for its card and its description."""

from collections.abc import Iterator

from compalign_dagster.selection.version import Version

JUDGES = "The reward is as good as its judges: their languages, cultures and blind spots are its own."
PEOPLE = "Nobody asked the people in the images, or those who made them; a pair goes by `compalign takedown`."


def known_limits(version: Version) -> Iterator[str]:
    """The limits that the version's policy and facts tell of."""
    facts, policy = version.facts, version.policy
    yield PEOPLE
    yield JUDGES
    if policy.languages:
        yield f"Languages were told by a model, which errs on short captions; kept: {', '.join(policy.languages)}."
    else:
        yield "Captions in languages that nobody judged were ranked too, and such ranks mean little."
    yield "No image was checked for safety; only captions are, and only by the rules above."
    if not policy.most_per_duplicate_group:
        yield "The same image may be in several kept pairs: no cap on duplicate groups was set."
    if policy.most_per_semantic_cluster:
        yield "Semantic clusters are what one network sees in images: whatever it knows little of lies together."
    coverage = facts.get("coverage")
    if coverage is not None and coverage < 1:
        yield f"Only {coverage:.1%} of the crawl's live shards were scored when it was made."
    if facts["quarantined"]:
        yield f"{facts['quarantined']:,} pairs could not be scored and were not ranked."
