"""Common facts for the check of what is forgotten: tables with a question for each."""

from __future__ import annotations

# a question, and what is asked about with its answer; wrong answers are others of the table
_TEXT = """\
What is the capital of {}?
Spain: Madrid; Germany: Berlin; Portugal: Lisbon; Greece: Athens; Austria: Vienna; Poland: Warsaw;
Hungary: Budapest; Norway: Oslo; Sweden: Stockholm; Finland: Helsinki; Denmark: Copenhagen;
Ireland: Dublin; Belgium: Brussels; Turkey: Ankara; Iran: Tehran; Iraq: Baghdad; India: New Delhi;
China: Beijing; Thailand: Bangkok; Vietnam: Hanoi; South Korea: Seoul; Indonesia: Jakarta;
Australia: Canberra; New Zealand: Wellington; Kenya: Nairobi; Ethiopia: Addis Ababa; Morocco:
Rabat; Senegal: Dakar; Ghana: Accra; Argentina: Buenos Aires; Chile: Santiago; Peru: Lima; Cuba:
Havana; Colombia: Bogota; Venezuela: Caracas; Ukraine: Kyiv

On which continent is {}?
Nigeria: Africa; Egypt: Africa; China: Asia; Japan: Asia; Vietnam: Asia; France: Europe; Poland:
Europe; Sweden: Europe; Peru: South America; Argentina: South America; Chile: South America;
Canada: North America; Mexico: North America

Which language do most people in {} speak?
France: French; Japan: Japanese; Italy: Italian; Russia: Russian; Brazil: Portuguese; Argentina:
Spanish; Greece: Greek; Poland: Polish; Turkey: Turkish; Australia: English; Egypt: Arabic;
Sweden: Swedish

What is the opposite of "{}"?
big: small; old: young; fast: slow; early: late; light: dark; happy: sad; rich: poor; strong:
weak; wet: dry; full: empty; open: closed; hard: soft; high: low; long: short; loud: quiet; clean:
dirty; left: right; inside: outside; above: below; begin: end; buy: sell; win: lose; push: pull;
day: night; true: false; thick: thin; first: last; black: white

Which month comes after {}?
January: February; February: March; April: May; May: June; June: July; July: August; August:
September; September: October; October: November; November: December; December: January

Which day comes after {}?
Sunday: Monday; Tuesday: Wednesday; Wednesday: Thursday; Thursday: Friday; Friday: Saturday;
Saturday: Sunday

What is the chemical symbol of {}?
oxygen: O; hydrogen: H; carbon: C; nitrogen: N; iron: Fe; gold: Au; silver: Ag; sodium: Na;
calcium: Ca; helium: He; copper: Cu; lead: Pb; zinc: Zn; chlorine: Cl

What is a young {} called?
dog: a puppy; cat: a kitten; cow: a calf; horse: a foal; sheep: a lamb; bear: a cub; duck: a
duckling; deer: a fawn; frog: a tadpole; goat: a kid; kangaroo: a joey

What is the past tense of "{}"?
go: went; see: saw; eat: ate; run: ran; write: wrote; speak: spoke; take: took; give: gave; come:
came; know: knew; think: thought; buy: bought; bring: brought; find: found; drink: drank; swim:
swam; fly: flew; break: broke

What is the plural of "{}"?
mouse: mice; child: children; foot: feet; tooth: teeth; man: men; woman: women; goose: geese;
leaf: leaves; knife: knives; person: people; wolf: wolves; baby: babies

What color is {}?
a ripe banana: yellow; coal: black; blood: red; milk: white; a carrot: orange; a frog: green;
chocolate: brown; an elephant: gray

Which money is used in {}?
Japan: the yen; Germany: the euro; the United States: the dollar; India: the rupee; Russia: the
ruble; China: the yuan; Mexico: the peso; Switzerland: the franc

Who wrote {}?
Romeo and Juliet: William Shakespeare; War and Peace: Leo Tolstoy; Oliver Twist: Charles Dickens;
Don Quixote: Miguel de Cervantes; The Odyssey: Homer; Pride and Prejudice: Jane Austen; The Divine
Comedy: Dante; On the Origin of Species: Charles Darwin

What does a {} do?
baker: bake bread; doctor: treat the sick; teacher: teach children; pilot: fly planes; tailor:
make clothes; farmer: grow food; painter: paint pictures; fisher: catch fish; barber: cut hair
"""


def read_tables() -> list[tuple[str, dict[str, str]]]:
    """Returns each table's question, with {} for what is asked about, and its answers."""
    tables = []
    for paragraph in _TEXT.strip().split("\n\n"):
        question, *lines = paragraph.splitlines()
        entries = [entry.split(": ") for entry in " ".join(lines).split("; ")]
        tables.append((question, {asked.strip(): answer.strip() for asked, answer in entries}))
    return tables
