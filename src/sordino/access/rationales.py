"""Why an answer may be given or not: the policy's checks one after the other, with their outcomes.

A tuned model writes them before its answer. Each check stands right behind what it is about, which
is copied from the prompt: exceptions behind the asker, a role's rights behind the role, reporting
lines behind the target. So each is one small decision; a single verdict over all rules is hard to
learn for a small model. Whom the asker leads is listed first: to find a name again in a short list
is easier than in all records. Listed is only what the asker may read; no value that is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.access.policy_text import describe_roles, label_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.access.rights import Policy

_AS = {  # rule: what the asker is to the target, in words
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
    shown: Sequence[str] = (),
    is_missing: bool = False,
    with_role: bool = True,
) -> str:
    """Returns the checks up to the one that decides: about the asker, the role, the target.

    Of several attributes, the first whose decision is the whole question's is told. Where a name is
    asked for, another target than the asker is told by id.

    Args:
        policy: Its rules; a check is told only where the policy has a rule of the kind.
        asker: Id.
        target: Id.
        attributes: What is asked for.
        shown: Ids of the records in the context.
        is_missing: Whether the context does not hold the target's record.
        with_role: Whether the prompt tells the asker's role.

    Raises:
        InvalidParameterError: If a person or an attribute is unknown.
    """
    decisions = {name: policy.decide(asker, target, name).allowed for name in attributes}
    may = all(decisions.values())
    decisive = next(name for name, allowed in decisions.items() if allowed == may)
    rules = {rule.partition(":")[0] for rule in policy.rules_about(asker, target, decisive)}
    name = policy.people[asker].name
    if "revoked" in rules:
        return f"Asker: {name} may not read."
    by_id = "name" in attributes
    own = asker if asker in shown else "not shown"
    below = _below(policy, asker, asker, shown, by_id=by_id) or "nobody"
    steps = [f"Asker: {name}, id: {own}, leads: {below}."]
    is_told = with_role or rules == {"role"}  # where nothing else allows, it must be told
    if is_told or "denied" in rules:
        steps.append(f"Role: {describe_roles(policy, asker)}{_rights(policy, rules)}.")
    if "denied" in rules:
        return " ".join(steps)
    is_own = asker == target
    # one's own record is found by one's name, which was copied already: an id is hard to find
    called = target if by_id and not is_own else policy.people[target].name
    about = "the asker" if is_own else called
    steps.append(f"About: {about}, {'not shown' if is_missing else 'shown'}.")
    if is_missing:
        return " ".join(steps)
    is_decided = (is_told and "role" in rules) or (is_own and "self" in rules)
    if not is_decided:
        allowed_as = next((label for rule, label in _AS.items() if rule in rules), "nobody")
        steps.append(f"May read as: {allowed_as}.")
    if may:
        labels = ", ".join(label_of(name) for name in attributes)
        steps.append(f"Look up: {labels} of {called}.")
    return " ".join(steps)


def _below(policy: Policy, asker: str, leader: str, shown: Sequence[str], *, by_id: bool) -> str:
    """Returns who of a context reports to a leader, and to whom of them others report.

    They are called as the target is.
    """
    told = []
    for person in shown:
        if policy.people[person].supervisor != leader or not _may_place(policy, asker, person):
            continue
        further = _below(policy, asker, person, shown, by_id=by_id)
        below = f" over {further}" if further else ""
        told.append(f"{person if by_id else policy.people[person].name}{below}")
    return ", ".join(told)


def _may_place(policy: Policy, asker: str, person: str) -> bool:
    """Returns whether an asker may know whom somebody reports to, and who bears an id."""
    wanted = [name for name in ("name", "supervisor") if name in policy.attributes]
    return all(policy.can_read(asker, person, name) for name in wanted)


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


def _word(holds: bool) -> str:  # noqa: FBT001 - private
    return "yes" if holds else "no"
