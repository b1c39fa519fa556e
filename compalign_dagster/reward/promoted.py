"""The promoted model: a decided fact in the store, with who moved it, when, why, and on what evidence.

What belongs here: reading and moving the pointer. What does not: what a model must show (`promotion.py`).
A roll-back is a decision like any other, to the model before, without a gate.
"""

import getpass
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compalign_dagster import artifacts, decisions, latest
from compalign_dagster.artifacts import Artifact
from compalign_dagster.decisions import Decision
from compalign_dagster.errors import CompalignError, InputError, PromotionRefusedError
from compalign_dagster.reward.manifest import MANIFEST, verified
from compalign_dagster.reward.promotion import Claim
from compalign_dagster.store import Store
from compalign_dagster.versions import work_key

DECISION = "promoted_model"
MODEL = "reward_model"
_IMPORTED = "cheap_model"
_MOST_CHARACTERS = 2000
_SHORTEST_VERSION = 6


@dataclass(frozen=True)
class Reason:
    """Who decides, and why: free text, one line each."""

    by: str
    why: str

    @classmethod
    def given(cls, by: str | None, why: str) -> "Reason":
        """`by`, or whoever runs this process. `InputError` for a reason that says nothing."""
        by, why = (" ".join(text.split())[:_MOST_CHARACTERS] for text in (by or "", why))
        if not why:
            raise InputError(
                "reason of a decision", expected="a sentence", found="nothing", remedy="Say why: it is recorded."
            )
        return cls(by or os_user(), why)


def os_user() -> str:
    """The name of the user that this process runs as; the number where it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def in_force(store: Store) -> Decision | None:
    """The newest decision, None before the first."""
    return decisions.current(store, DECISION)


def promoted(store: Store) -> Artifact:
    """The model in use; an error that says how to promote one otherwise."""
    now = in_force(store)
    found = artifacts.load(store, now.value["manifest"]) if now else None
    if found is None:
        raise CompalignError(
            f"promoted model in {store.url}",
            expected="a promoted reward model",
            found="none",
            remedy="Materialise reward_model, then promoted_model.",
        )
    return found


def promotions(store: Store) -> list[Artifact]:
    """Every model that was ever promoted, newest promotion first, each once."""
    seen: dict[str, Artifact] = {}
    for decision in reversed(decisions.history(store, DECISION)):
        model = artifacts.load(store, decision.value["manifest"])
        if model is not None:
            seen.setdefault(model.manifest_key, model)
    return list(seen.values())


def candidate(store: Store, version: str | None = None) -> Artifact:
    """The newest reward model, or the one whose version begins with `version` (at least 6 hex digits)."""
    if version is None:
        return latest.require(store, MODEL)
    known = {model.facts["model_version"]: model for model in latest.history(store, MODEL)}
    found = [name for name in known if name.startswith(version)]
    if len(version) < _SHORTEST_VERSION or len(found) != 1:
        raise InputError(
            f"model version {version!r}",
            expected=f"the beginning (at least {_SHORTEST_VERSION} digits) of exactly one of: "
            + (", ".join(name[:12] for name in known) or "no model, for none was trained"),
            found=f"{len(found)} of them",
            remedy="Give more digits, or train the model first.",
        )
    return known[found[0]]


def imported(store: Store, folder: Path) -> Artifact:
    """A model folder from elsewhere, verified and published here, so that works can name it; never a candidate."""
    manifest = verified(folder)
    key = work_key(_IMPORTED, code_version=1, inputs=[manifest.model_version], config={})
    found = artifacts.find(store, _IMPORTED, key)
    return found or artifacts.publish(
        store,
        _IMPORTED,
        key,
        {name: folder / name for name in (MANIFEST, *manifest.files)},
        code_version=1,
        inputs=[],
        config={},
        facts={"model_version": manifest.model_version, "backbone": manifest.backbone},
    )


def promote(
    store: Store,
    model: Artifact,
    claims: Sequence[Claim],
    reason: Reason,
    *,
    now: Decision | None,
    against: Mapping[str, Any] | None = None,
) -> Decision:
    """Move the pointer to `model`, whose claims were judged while `now` was in force.

    Raises `PromotionRefusedError` when a claim does not hold, `DecidedMeanwhileError` when another
    decision came between: the comparison was with a model that is not in force.
    """
    require_claims(model, claims)
    value = {
        **_pointer(model, reason),
        "action": "promote",
        "claims": [{"claim": claim, "figure": figure} for claim, _, figure in claims],
        "against": dict(against) if against is not None else None,
    }
    return decisions.decide(store, DECISION, value, after=now.version if now else 0)


def require_claims(model: Artifact, claims: Sequence[Claim]) -> None:
    """Raise `PromotionRefusedError`, with every figure that is short, unless there are claims and all hold."""
    refusals = [why for _, holds, why in claims if not holds] if claims else ["The gate was not asked."]
    if refusals:
        raise PromotionRefusedError(
            f"reward model {model.facts['model_version'][:16]}",
            expected="every claim of the promotion gate to hold",
            found=" ".join(refusals),
            remedy="Look at the model's page; add judgements or train longer, then promote again.",
        )


def roll_back(store: Store, reason: Reason) -> Decision:
    """Move the pointer back to the model before, as a new decision; again for the one before that.

    `InputError` when there is none, or when this release cannot read it. The model's files are verified first.
    """
    made = decisions.history(store, DECISION)
    earlier = _before(made)
    model = artifacts.load(store, earlier.value["manifest"]) if earlier else None
    if earlier is None or model is None:
        raise InputError(
            f"promoted model in {store.url}",
            expected="a model that was promoted before the one in use",
            found="none",
            remedy="`compalign promote --history` lists the promotions.",
        )
    model.verify()
    _require_readable(model)
    value = {**_pointer(model, reason), "action": "roll back", "restores": _restores(earlier)}
    return decisions.decide(store, DECISION, value, after=made[-1].version)


def _require_readable(model: Artifact) -> None:
    """Refuse a model of another format now, by its version, and not when it is to score."""
    with tempfile.TemporaryDirectory() as temporary:
        try:
            verified(model.checkout(Path(temporary, "model")))
        except InputError as error:
            raise InputError(
                f"model {model.facts['model_version'][:16]}, promoted before the one in use",
                expected=error.expected,
                found=error.found,
                remedy="Roll back with the release that wrote it, or promote another model: "
                "`compalign promote --history` lists them.",
            ) from error


def history(store: Store) -> list[Decision]:
    """Every decision about the promoted model, oldest first."""
    return decisions.history(store, DECISION)


def _restores(decision: Decision) -> int:
    """The version at which this decision's model was promoted through the gate."""
    return int(decision.value.get("restores", decision.version))


def _before(made: Sequence[Decision]) -> Decision | None:
    """The newest decision for another model before the one in force was promoted."""
    if not made:
        return None
    earlier = [decision for decision in made if decision.version < _restores(made[-1])]
    return next((item for item in reversed(earlier) if item.value["manifest"] != made[-1].value["manifest"]), None)


def _pointer(model: Artifact, reason: Reason) -> dict[str, Any]:
    metrics = {name: value for name, value in (model.facts.get("metrics") or {}).items() if name != "evidence"}
    return {
        "manifest": model.manifest_key,
        "model_version": model.facts["model_version"],
        "data_version": model.data_version,
        "metrics": metrics,
        "by": reason.by,
        "why": reason.why,
    }
