"""A policy in words, and what a model is told before a question."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sordino.access import _templates as wording
from sordino.access.benchmark import MISSING, REFUSAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sordino.access.company import Company
    from sordino.access.rights import Policy, SpecialRight

_MOST_EXCEPTIONS = 8  # told in a prompt
_RELATION_TEXTS = {
    "self": "Everybody may read {what} in their own record.",
    "direct_supervisor": "A direct supervisor may read {what} of the people they supervise.",
    "higher_managers": "Managers further up the reporting line may read {what} of all below them.",
    "everyone": "Everybody may read {what} of everybody.",
}


def describe_policy(company: Company, involved: Sequence[str]) -> str:
    """Returns the rules as prompts tell them.

    Args:
        company: Whose rules.
        involved: Ids of people whose exceptions are told even where there are too many to tell all.
    """
    policy = company.policy
    names = ", ".join(label_of(attribute) for attribute in policy.attributes)
    lines = [f"Personal data are: {names}."]
    for relation, text in _RELATION_TEXTS.items():
        if policy.relations.get(relation):
            lines.append(text.format(what=_what(policy, policy.relations[relation])))
    for role, attributes in policy.role_rights.items():
        if attributes:
            what = _what(policy, attributes)
            lines.append(f"Users with the role {policy.roles[role]} may read {what} of everybody.")
    for role, attributes in policy.role_denials.items():
        if attributes:
            what = _what(policy, attributes, "any")
            lines.append(f"Users with the role {policy.roles[role]} may not read {what} of others.")
    for verb, entries in (("may read", policy.granted), ("may not read", policy.revoked)):
        first = sorted(entries, key=lambda entry: entry.person not in involved)
        told = first[:_MOST_EXCEPTIONS]
        # in the policy's order: the asker's place in it must not tell the answer
        lines += [_special(policy, verb, entry) for entry in entries if entry in told]
    lines.append("Nobody may read anything else.")
    return "\n".join(f"- {line}" for line in lines)


def make_system_text(
    company: Company,
    asker: str,
    shown: Sequence[str],
    *,
    involved: Sequence[str] = (),
    with_role: bool = True,
    only_readable: bool = False,
) -> str:
    """Returns what a model is told before a question: rules, records, and who asks.

    Args:
        company: Whose rules and records.
        asker: Id.
        shown: Ids of the records.
        involved: As in `describe_policy`.
        with_role: Whether the asker's role is told.
        only_readable: Whether values that the asker may not read are left out.
    """
    policy = company.policy
    roles = describe_roles(policy, asker)
    identity = wording.IDENTITY_WITH_ROLE if with_role else wording.IDENTITY
    return wording.SYSTEM.format(
        policy=describe_policy(company, involved),
        context=company.records(shown, reader=asker if only_readable else None),
        identity=identity.format(asker=policy.people[asker].name, role=roles),
        missing=MISSING,
        refusal=REFUSAL,
    )


def describe_roles(policy: Policy, person: str) -> str:
    """Returns somebody's roles as prompts tell them."""
    return ", ".join(policy.roles[role] for role in policy.people[person].roles) or "none"


def label_of(attribute: str) -> str:
    """Returns how an attribute is called in sentences."""
    return attribute.replace("_", " ")


def _what(policy: Policy, attributes: frozenset[str], every: str = "all") -> str:
    """Returns attributes in words, in the policy's order."""
    if attributes == frozenset(policy.attributes):
        return f"{every} personal data"
    return ", ".join(label_of(name) for name in policy.attributes if name in attributes)


def _special(policy: Policy, verb: str, entry: SpecialRight) -> str:
    """Returns a right of one person in words."""
    of = "anybody else"
    if entry.of is not None:
        of = ", ".join(policy.people[person].name for person in sorted(entry.of))
    name = policy.people[entry.person].name
    what = _what(policy, entry.attributes, "any" if "not" in verb else "all")
    return f"{name} {verb} {what} of {of}, whatever else is said here."
