"""`sordino access generate`: companies, policies and questions, apart for tuning and testing."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from sordino.access.company import Company, CompanyMaker, read_company, write_table
from sordino.access.contexts import MOST_QUESTIONS, make_context_questions
from sordino.access.questions import Question, count_kinds, make_questions
from sordino.core.checks import require_integer
from sordino.core.errors import InvalidDataError, InvalidParameterError

QUESTIONS = "questions.jsonl"
EMPLOYEES = "employees.csv"
POLICY = "policy.toml"


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The written folder.

    Args:
        output: The folder.
        num_questions: Questions by split and questionnaire.
    """

    output: Path
    num_questions: dict[str, dict[str, int]]


def generate(
    *,
    output: Annotated[Path, Doc("Folder to make.")],
    seed: Annotated[int, Doc("Public seed; the same seed gives the same files.")] = 0,
    employees: Annotated[int, Doc("Employees of each generated company.")] = 200,
    train_companies: Annotated[int, Doc("Companies to tune on; one more is for testing.")] = 1,
    questions: Annotated[int, Doc("Questions of each kind, for each company.")] = 250,
    questions_per_context: Annotated[
        int,
        Doc(
            f"Questions to tune on about each context, at most {MOST_QUESTIONS}: what they share "
            "is computed once. 1: a context for each."
        ),
    ] = 8,
    employees_file: Annotated[
        Path | None, Doc("Your own employees (CSV), for a test; needs --policy.")
    ] = None,
    policy: Annotated[Path | None, Doc("Your own policy (TOML).")] = None,
) -> GenerateResult:
    """Makes questions about employees whose right answers follow from a policy.

    OUTPUT/train and OUTPUT/test hold questions.jsonl, and a folder for each company with
    employees.csv and policy.toml. No company and no wording of a question is in both. Your own
    employees are one company and make a test only: tune on generated companies.

    Returns:
        The folder and the number of questions.

    Raises:
        InvalidParameterError: If a number is out of range, the folder exists, or only one of
            employees_file and policy is given.
        InvalidDataError: If your table or policy cannot be used.

    Source:
        arXiv:2601.20901 and the ACCESS DENIED INC benchmark; texts and generator are our own.

    Example:
        sordino access generate --seed 1 --employees 200 --output questions
    """
    output = Path(output)
    require_integer("train_companies", train_companies, 1)
    if output.exists():
        raise InvalidParameterError(
            f"output {output} exists already and nothing is overwritten. Choose another folder."
        )
    if (employees_file is None) != (policy is None):
        raise InvalidParameterError(
            "--from (employees_file) and --policy must be given together: a table of people, and "
            "who may read what of them."
        )
    if employees_file is not None and policy is not None:
        own = read_company("own", Path(employees_file), Path(policy))
        splits = {"test": [own]}
    else:
        companies = _make_companies(seed, employees, train_companies + 1)
        splits = {"train": companies[:-1], "test": companies[-1:]}
    require_integer("questions_per_context", questions_per_context, 1, MOST_QUESTIONS)

    def make(company: Company, split: str) -> list[Question]:
        if split == "test" or questions_per_context == 1:
            return make_questions(company, seed=seed, split=split, num_each=questions)
        # as many as there would be with a context for each
        count = questions * len(make_questions(company, seed=seed, split=split, num_each=1))
        return make_context_questions(
            company,
            seed=seed,
            num_contexts=-(-count // questions_per_context),
            num_each=questions_per_context,
        )

    made = {
        split: [question for company in members for question in make(company, split)]
        for split, members in splits.items()
    }
    # everything is made before anything is written: no half-written folder
    for split, members in splits.items():
        _write_split(output / split, members, made[split])
    return GenerateResult(output, {split: count_kinds(found) for split, found in made.items()})


def find_questions(folder: str | Path, split: str) -> Path:
    """Returns the folder of a split: below a generated folder, or that folder itself.

    Raises:
        InvalidParameterError: If there is neither.
    """
    for place in (Path(folder) / split, Path(folder)):
        if (place / QUESTIONS).is_file():
            return place
    raise InvalidParameterError(
        f"questions must be a folder of sordino access generate; {folder} holds neither "
        f"{split}/{QUESTIONS} nor {QUESTIONS}."
    )


def read_questions(folder: str | Path) -> list[Question]:
    """Returns the questions of a split's folder, such as OUTPUT/test.

    Raises:
        InvalidDataError: If a line is not a question.
    """
    path = Path(folder) / QUESTIONS
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a value may hold other line breaks
        return [Question(**json.loads(line)) for line in lines if line]
    except (ValueError, TypeError) as error:  # says nothing of the line: it holds records
        raise InvalidDataError(
            f"{path}: not questions of sordino access generate ({type(error).__name__}). Generate "
            "them again."
        ) from None


def _make_companies(seed: int, num_employees: int, number: int) -> list[Company]:
    """Returns generated companies that share nobody."""
    maker = CompanyMaker(seed)
    companies = []
    with tempfile.TemporaryDirectory() as folder:
        for index in range(number):
            rows = maker.rows(num_employees)
            table, policy = Path(folder) / EMPLOYEES, Path(folder) / POLICY
            write_table(table, rows)
            policy.write_text(maker.policy_text(rows), encoding="utf-8", newline="\n")
            companies.append(read_company(f"company-{index}", table, policy))
    return companies


def _write_split(folder: Path, companies: list[Company], questions: list[Question]) -> None:
    """Writes the questions and companies of one split."""
    for company in companies:
        place = folder / company.name
        place.mkdir(parents=True)
        write_table(place / EMPLOYEES, list(company.employees.values()))
        (place / POLICY).write_text(company.policy_text, encoding="utf-8", newline="\n")
    lines = (json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions)
    (folder / QUESTIONS).write_text("".join(lines), encoding="utf-8", newline="\n")
