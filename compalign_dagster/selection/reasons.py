"""Why a pair was not kept: the names, what they mean, and which one a pair gets when several apply.

Every dropped pair has exactly one reason, the first of `ORDER` that applies to it.
"""

TAKEDOWN = "takedown"
EVALUATION_OVERLAP = "evaluation_overlap"
LANGUAGE = "language"
CAPTION_PATTERN = "caption_pattern"
FLOOR = "floor"
REWARD_FLOOR = "reward_floor"
NOT_SAMPLED = "not_sampled"
CASCADE_REJECT = "cascade_reject"
DUPLICATE_CAP = "duplicate_cap"
CLUSTER_CAP = "cluster_cap"
DOMAIN_CAP = "domain_cap"
NO_BUDGET = "no_budget"
TIED_AT_CUT = "tied_at_cut"
BELOW_CUT = "below_cut"

MEANING = {
    TAKEDOWN: "on the block list: somebody asked for it to go",
    EVALUATION_OVERLAP: "on the block list: it is part of a set that models are evaluated on",
    LANGUAGE: "the caption's language is not among the policy's",
    CAPTION_PATTERN: "the caption matches a pattern that the policy refuses",
    FLOOR: "a figure of the pair lies below the policy's floor for it, or is missing",
    REWARD_FLOOR: "the reward lies below the policy's floor",
    NOT_SAMPLED: "the reward gives a chance to be kept, and the pair was not drawn",
    CASCADE_REJECT: "a cheap score turned the pair down, so that it has no reward",
    DUPLICATE_CAP: "enough pairs with a better reward show the same image, or nearly the same",
    CLUSTER_CAP: "enough pairs with a better reward show an image of the same semantic cluster",
    DOMAIN_CAP: "enough pairs with a better reward are of the same domain",
    NO_BUDGET: "the budget keeps nothing",
    TIED_AT_CUT: "the reward of the last kept pair, but behind it by the tie-break",
    BELOW_CUT: "a lower reward than the last kept pair",
}
ORDER = tuple(MEANING)

OF_BLOCK_LIST = (TAKEDOWN, EVALUATION_OVERLAP)
OF_ROW = ORDER[: ORDER.index(CASCADE_REJECT) + 1]
"""Reasons that one pair's own facts decide; they stand in the ranked lists."""
OF_CAP = (DUPLICATE_CAP, CLUSTER_CAP, DOMAIN_CAP)
OF_CUT = (NO_BUDGET, TIED_AT_CUT, BELOW_CUT)
