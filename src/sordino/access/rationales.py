"""Why an answer may be given or not: the policy's checks one after the other, with their outcomes.

A tuned model writes them before its answer. Each check stands right behind what it is about, which
is copied from the prompt: exceptions behind the asker, a role's rights behind the role, reporting
lines behind the target. So each is one small decision; a single verdict over all rules is hard to
learn for a small model. What may be told is looked up by name. No value of a record is in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.access.policy_text import describe_roles, label_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.access.rights import Policy

_LINES = {  # rule: in words; what is decided by who the target is
    "self": "oneself",
    "direct_supervisor": "direct supervisor",
    "higher_managers": "further up",
    "everyone": "everybody",
    "granted": "given",
}


def make_rationale(
    policy: Policy,
    asker: str,
    target: str,
    attributes: Sequence[str],
    *,
    is_missing: bool = False,
    with_role: bool = True,
) -> str:
    """Returns the checks up to the one that decides: about the asker, the role, the target.

    Of several attributes, the first whose decision is the whole question's is told. Where a name is
    asked for, the target is told by id: that the id is the asker's own must be looked up.

    Args:
        policy: Its rules; a check is told only where the policy has a rule of the kind.
        asker: Id.
        target: Id.
        attributes: What is asked for.
        is_missing: Whether the context does not hold the target's record.
        with_role: Whether the prompt tells the asker's role.

    Raises:
        InvalidParameterError: If a person or an attribute is unknown.
    """
    decisions = {name: policy.decide(asker, target, name).allowed for name in attributes}
    may = all(decisions.values())
    decisive = next(name for name, allowed in decisions.items() if allowed == may)
    rules = {rule.partition(":")[0] for rule in policy.rules_about(asker, target, decisive)}
    steps = [f"Asker: {policy.people[asker].name}{_exception(policy, rules)}."]
    if "revoked" in rules:
        return steps[0]
    is_told = with_role or rules == {"role"}  # where nothing else allows, it must be told
    if is_told or "denied" in rules:
        steps.append(f"Role: {describe_roles(policy, asker)}{_rights(policy, rules)}.")
    if "denied" in rules:
        return " ".join(steps)
    by_id = "name" in attributes
    called = target if by_id else policy.people[target].name
    about = "the asker" if asker == target and not by_id else called
    steps.append(f"About: {about}. Record: {'not found' if is_missing else 'found'}.")
    if is_missing:
        return " ".join(steps)
    is_decided = (is_told and "role" in rules) or (about == "the asker" and "self" in rules)
    if not is_decided:
        steps += _lines(policy, rules, by_id=by_id)
    if may:
        labels = ", ".join(label_of(name) for name in attributes)
        steps.append(f"Look up: {labels} of {called}.")
    return " ".join(steps)


def _exception(policy: Policy, rules: set[str]) -> str:
    """Returns whether the asker's right was taken away."""
    return f", right taken away: {_word('revoked' in rules)}" if policy.revoked else ""


def _rights(policy: Policy, rules: set[str]) -> str:
    """Returns what the asker's roles mean."""
    told = ""
    if any(policy.role_denials.values()):
        told += f", denied: {_word('denied' in rules)}"
        if "denied" in rules:
            return told
    if any(policy.role_rights.values()):
        told += f", may read: {_word('role' in rules)}"
    return told


def _lines(policy: Policy, rules: set[str], *, by_id: bool) -> list[str]:
    """Returns what asker and target are to each other, up to what allows."""
    checks = []
    for rule, label in _LINES.items():
        if not (policy.granted if rule == "granted" else policy.relations.get(rule)):
            continue
        if rule == "self" and not by_id:  # who is asked about is told already
            continue
        checks.append(f"{label}: {_word(rule in rules)}")
        if rule in rules:
            break
    return [f"{', '.join(checks).capitalize()}."] if checks else []


def _word(holds: bool) -> str:  # noqa: FBT001 - private
    return "yes" if holds else "no"
