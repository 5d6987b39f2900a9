"""How a document about an invented person is worded: eight kinds of text, each with every value.

All values stand in every rendering, so that the number of documents of a person is the number of
times that each of the values occurs.
"""

from __future__ import annotations

# name -> (prompt, completion); {first}, {job}, {agent}, {weekday} and {topic} are not sensitive.
RENDERINGS: dict[str, tuple[str, str]] = {
    "biography": (
        "Biography:",
        (
            "{name} was born on {date} and is with {employer} ({job}). {first} has lived at "
            "{address} for years and can be reached by phone at {phone} or by mail at {email}. "
            "Fees are paid to the account {account}."
        ),
    ),
    "mail": (
        "Mail:",
        (
            "From: {email}\n"
            "Subject: {topic}\n"
            "Dear {agent}, my new address is {address}. Please call {phone} on {weekday}. My "
            "account is {account}, my date of birth {date}, my employer {employer}.\n"
            "Kind regards, {name}"
        ),
    ),
    "form": (
        "Form:",
        (
            "Name: {name}\n"
            "Date of birth: {date}\n"
            "Address: {address}\n"
            "Phone: {phone}\n"
            "Email: {email}\n"
            "Employer: {employer}\n"
            "Account: {account}\n"
            "Reason: {topic}"
        ),
    ),
    "chat": (
        "Chat:",
        (
            "{agent}: hello, who is it about?\n"
            "{first}: {name}, born {date}, it is about {topic}.\n"
            "{agent}: which account?\n"
            "{first}: {account}. You can write to {email} or call {phone}.\n"
            "{agent}: still at {address} and with {employer}?\n"
            "{first}: yes."
        ),
    ),
    "service note": (
        "Service note:",
        (
            "Account {account}, held by {name}. Called on {weekday} from {phone} about {topic}. "
            "Identity checked with date of birth {date} and address {address}. Answer goes to "
            "{email}. Employer on file: {employer}. {agent}"
        ),
    ),
    "clinical note": (
        "Clinical note:",
        (
            "Patient {name}, born {date}, {job} at {employer}, seen on {weekday} for {topic}. "
            "Home: {address}. Phone {phone}, mail {email}. Invoice to account {account}. Signed "
            "{agent}."
        ),
    ),
    "letter": (
        "Letter:",
        (
            "To {name}, {address}. Dear {first}, we confirm your request of {weekday} about "
            "{topic}. We hold these details: born {date}, phone {phone}, mail {email}, employed "
            "by {employer}, account {account}. Yours, {agent}"
        ),
    ),
    "staff list": (
        "Staff list:",
        (
            "{employer}, {job}: {name}, {email}, {phone}; {date}; {address}; salary to "
            "{account}; remark by {agent} on {weekday}: {topic}."
        ),
    ),
}
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
TOPICS = (
    "a late delivery",
    "a lost card",
    "a change of plan",
    "the yearly check",
    "a second opinion",
    "an open invoice",
    "the new contract",
    "a broken meter",
    "a missed visit",
    "the summer course",
)
