"""Why an answer may be given or not: the policy's checks one after the other, with their outcomes.

A tuned model writes them before its answer. Who asks, in which role and about whom stand first,
copied from the prompt, so that each check is one small decision: a single verdict over all rules,
or even whether two names are the same, is hard to learn for a small model. No value of a record is
in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.access.policy_text import describe_roles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sordino.access.rights import Policy

_RELATIONS = {
    "self": "as oneself",
    "direct_supervisor": "as direct supervisor",
    "higher_managers": "from further up",
    "everyone": "as everybody",
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
    """Returns the checks up to the one that decides, in the order of `Policy.decide`.

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
    decisions = [policy.decide(asker, target, attribute) for attribute in attributes]
    may = all(decision.allowed for decision in decisions)
    rule = next(decision.rule for decision in decisions if decision.allowed == may)
    about = "the asker" if asker == target else policy.people[target].name
    if "name" in attributes:
        about = target
    role = f" (role: {describe_roles(policy, asker)})" if with_role else ""
    start = f"Asker: {policy.people[asker].name}{role}. About: {about}. Record:"
    if is_missing:
        return f"{start} not found."
    told = []
    for kind, label in _checks(policy):
        is_deciding = kind == rule.partition(":")[0]
        told.append(f"{label}: {'yes' if is_deciding else 'no'}")
        if is_deciding:
            break
    return f"{start} found. Right {', '.join(told)}."


def _checks(policy: Policy) -> Iterator[tuple[str, str]]:
    """Yields the kinds of rules that a policy has, in the order of its decisions, in words."""
    if policy.revoked:
        yield "revoked", "taken away"
    if any(policy.role_denials.values()):
        yield "denied", "denied by role"
    for relation, label in _RELATIONS.items():
        if policy.relations.get(relation):
            yield relation, label
    if any(policy.role_rights.values()):
        yield "role", "by role"
    if policy.granted:
        yield "granted", "given"
