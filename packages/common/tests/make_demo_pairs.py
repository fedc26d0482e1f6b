"""Makes the graded pairs of the demo: ``python make_demo_pairs.py FOLDER`` (the same bytes always).

Every response is a good answer of 10 points with faults put in; every fault has a price (:data:`PENALTIES`). So the
scores, and with them the size of every margin, are known by construction and not by anyone's taste.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

FULL_MARKS = 10
TRAIN, EVALUATION = 320, 80
SEED = 20241

# Points off. "missing" is per item left out; "bare" is all that was asked for, but without a sentence around it.
PENALTIES = {"wrong": 5, "missing": 2, "off_topic": 7, "rude": 3, "shouting": 2, "repeated": 2, "bare": 1}

LISTS = {
    "fruits": ["apples", "pears", "plums", "cherries", "grapes", "figs"],
    "vegetables": ["carrots", "onions", "peas", "leeks", "beans", "beets"],
    "colours": ["red", "green", "blue", "yellow", "purple", "orange"],
    "farm animals": ["cows", "sheep", "goats", "hens", "pigs", "ducks"],
    "wild animals": ["foxes", "bears", "wolves", "deer", "hares", "otters"],
    "tools": ["a hammer", "a saw", "a spanner", "a file", "a drill", "a chisel"],
    "kitchen things": ["a pan", "a whisk", "a ladle", "a grater", "a sieve", "a kettle"],
    "instruments": ["a violin", "a flute", "a drum", "a harp", "a trumpet", "a cello"],
    "trees": ["oak", "birch", "maple", "pine", "elm", "willow"],
    "flowers": ["roses", "tulips", "daisies", "lilies", "poppies", "irises"],
    "sports": ["tennis", "rowing", "football", "judo", "cycling", "hockey"],
    "vehicles": ["a bus", "a train", "a bicycle", "a ferry", "a tram", "a lorry"],
    "clothes": ["a coat", "a scarf", "a shirt", "a hat", "a skirt", "a pair of gloves"],
    "rooms of a house": ["the kitchen", "the bedroom", "the bathroom", "the hall", "the attic", "the cellar"],
    "drinks": ["tea", "coffee", "milk", "juice", "water", "cocoa"],
    "metals": ["iron", "copper", "tin", "silver", "zinc", "lead"],
    "jobs": ["a baker", "a nurse", "a pilot", "a farmer", "a teacher", "a plumber"],
    "shapes": ["a circle", "a square", "a triangle", "a hexagon", "an oval", "a star"],
    "spices": ["pepper", "cumin", "ginger", "cloves", "saffron", "nutmeg"],
    "birds": ["robins", "crows", "owls", "swans", "herons", "finches"],
    "things in a schoolbag": ["a ruler", "a pencil", "a book", "a rubber", "a notebook", "a lunch box"],
    "planets": ["Mercury", "Venus", "Mars", "Jupiter", "Saturn", "Neptune"],
}
OPPOSITES = dict(
    hot="cold", big="small", fast="slow", early="late", full="empty", light="dark", soft="hard", wet="dry", high="low",
    open="closed", rich="poor", loud="quiet", young="old", strong="weak", clean="dirty", happy="sad", near="far",
    thick="thin", sweet="sour", long="short", wide="narrow", deep="shallow", brave="timid", sharp="blunt",
    heavy="light in weight", first="last", inside="outside", above="below", before="after", more="less",
)  # fmt: skip
FACTS = {
    "What colour is a ripe banana?": ("yellow", "blue"),
    "How many legs does a spider have?": ("eight", "five"),
    "What do bees make?": ("honey", "butter"),
    "Which season comes after winter?": ("spring", "autumn"),
    "What is frozen water called?": ("ice", "sand"),
    "Where do fish live?": ("in water", "in trees"),
    "What do we use to cut paper?": ("scissors", "a spoon"),
    "Which day comes after Monday?": ("Tuesday", "Friday"),
    "How many days does a week have?": ("seven", "nine"),
    "What does a thermometer measure?": ("temperature", "weight"),
    "Which animal barks?": ("the dog", "the snail"),
    "What do plants need to grow, besides water and soil?": ("light", "glue"),
    "What is the young of a cat called?": ("a kitten", "a foal"),
    "In which direction does the sun rise?": ("in the east", "in the north"),
    "What do we wear on our feet?": ("shoes", "gloves"),
    "How many wheels does a bicycle have?": ("two", "six"),
    "What do cows give us to drink?": ("milk", "lemonade"),
    "Which month is the first of the year?": ("January", "July"),
    "What is bread made from?": ("flour", "chalk"),
    "What falls from clouds when it rains?": ("water", "leaves"),
    "What do we call a doctor for animals?": ("a vet", "a tailor"),
    "Which part of the body do we hear with?": ("the ears", "the knees"),
    "What is the largest land animal?": ("the elephant", "the mouse"),
    "What do we look at to know the time?": ("a clock", "a fork"),
    "Where are books lent out?": ("in a library", "in a bakery"),
    "What does a caterpillar turn into?": ("a butterfly", "a frog"),
    "Which of the senses uses the nose?": ("smell", "taste"),
    "What covers a bird's body?": ("feathers", "scales"),
    "What is a group of wolves called?": ("a pack", "a choir"),
    "How many months does a year have?": ("twelve", "twenty"),
}
STEPS = {
    "make a cup of tea": ["boil the water", "put a tea bag into a cup", "pour the water over it", "wait three minutes"],
    "plant a seed": ["fill a pot with soil", "make a small hole", "put the seed in", "water it gently"],
    "wash my hands": ["wet your hands", "rub them with soap", "rinse them well", "dry them with a towel"],
    "post a letter": ["write the address", "close the envelope", "put on a stamp", "drop it into a letter box"],
    "boil an egg": ["bring water to the boil", "lower the egg in", "wait eight minutes", "cool it in cold water"],
    "change a light bulb": ["switch off the light", "let the bulb cool", "screw it out", "screw the new one in"],
    "cross a road safely": ["stop at the kerb", "look both ways", "wait for a gap", "walk straight across"],
    "borrow a book": ["go to the library", "find the book", "take it to the desk", "show your card"],
    "make toast": ["slice the bread", "put it into the toaster", "wait until it pops up", "spread some butter"],
    "clean a window": ["wipe off the dust", "spray on some cleaner", "rub it with a cloth", "polish it dry"],
    "pack for a trip": ["make a list", "fold your clothes", "put the heavy things in first", "check the list"],
    "wrap a present": ["cut the paper to size", "fold it round the box", "tape the edges", "tie a ribbon"],
}
REQUESTS = {
    "Give me water.": "Could you please give me some water?",
    "Open the door.": "Would you please open the door?",
    "Be quiet.": "Could you please be a little quieter?",
    "Send the report.": "Could you please send the report?",
    "Move your car.": "Would you mind moving your car, please?",
    "Call me back.": "Could you please call me back?",
    "Close the window.": "Would you please close the window?",
    "Wait here.": "Could you please wait here for a moment?",
    "Help me.": "Could you please help me?",
    "Pass the salt.": "Would you please pass the salt?",
    "Turn the music down.": "Could you please turn the music down a little?",
    "Sign this form.": "Would you please sign this form?",
}
RUDE = [
    "What a silly question.", "You should know that already.", "I can't believe you are asking me this.",
    "Anyone could tell you that.", "Don't waste my time.",
]  # fmt: skip
OFF_TOPIC = [
    "My neighbour painted his fence last week and it still smells.", "I once saw a very long train at the station.",
    "The weather has been strange lately, with so much wind.", "Some shops close early on Wednesdays around here.",
    "There is a film about that, but I forget its name.",
]  # fmt: skip
UNITS = [("hours", "minutes", 60), ("weeks", "days", 7), ("metres", "centimetres", 100), ("kilograms", "grams", 1000)]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


@dataclass(frozen=True)
class Task:
    """A prompt, and what a response to it is made of: ``answer(rng, items, wrong)`` says ``items`` of ``total``."""

    prompt: str
    total: int
    answer: Callable[[random.Random, int, bool], str]
    bare: str
    can_be_wrong: bool = True


@dataclass(frozen=True)
class Response:
    """A text and the points it is worth."""

    text: str
    score: int


def tasks() -> Iterator[Task]:
    """Yield every task of the bank."""
    for kind, items in LISTS.items():
        for count in (3, 4, 5):
            yield _list_task(kind, items, count)
    for word, opposite in OPPOSITES.items():
        others = [other for other in OPPOSITES.values() if other != opposite]
        forms = [
            f"The opposite of {word} is {{}}.",
            f"{{}} is the opposite of {word}.",
            f"For {word} that would be {{}}.",
        ]
        yield _single(f"What is the opposite of '{word}'?", opposite, others, forms)
    for question, (right, wrong) in FACTS.items():
        yield _single(question, right, [wrong], ["The answer is {}.", "It is {}, of course.", "That would be {}."])
    for first in range(3, 13):
        for second in range(2, 15, 3):
            yield _arithmetic(first, "plus", second, first + second)
            yield _arithmetic(first + second, "minus", first, second)
            yield _arithmetic(first, "times", second, first * second)
    for start in range(1, 21):
        yield _counting(list(range(start, start + 6)))
        yield _counting(list(range(start + 30, start + 24, -1)))
    for letter, following in pairwise("abcdefghijklmnopqrstuvwxyz"):
        others = [other for other in "aeioubkw" if other != following]
        forms = ["It is {}.", f"After {letter} comes {{}}.", f"{{}} follows {letter}."]
        yield _single(f"Which letter follows '{letter}' in the alphabet?", following, others, forms)
    for number in range(2, 12):
        for unit, part, factor in UNITS:
            total = number * factor
            yield _single(
                f"How many {part} are in {number} {unit}?",
                str(total),
                [str(total + factor), str(total - factor // 2), str(total * 2)],
                [f"There are {{}} {part} in {number} {unit}.", f"{number} {unit} are {{}} {part}."],
            )
    for goal, steps in STEPS.items():
        yield _steps(f"How do I {goal}?", steps)
        yield _steps(f"Please tell me how to {goal}, step by step.", steps)
    for blunt, polite in REQUESTS.items():
        yield _single(
            f'Make this polite: "{blunt}"', polite, [blunt, blunt.upper()], ["You could say: {}", "A polite way is: {}"]
        )


def respond(task: Task, rng: random.Random, faults: dict[str, int]) -> Response:
    """Write a response with ``faults`` ("missing" counts items) and work out its score."""
    score = FULL_MARKS - sum(PENALTIES[name] * times for name, times in faults.items())
    if "off_topic" in faults:
        text = rng.choice(OFF_TOPIC)
    elif "bare" in faults:
        text = task.bare
    else:
        text = task.answer(rng, task.total - faults.get("missing", 0), "wrong" in faults)
    if "repeated" in faults:
        text = f"{text} {text}"
    if "rude" in faults:
        text = f"{rng.choice(RUDE)} {text}"
    if "shouting" in faults:
        text = text.rstrip(".").upper() + "!!!"
    return Response(text, score)


def draw_faults(task: Task, rng: random.Random, limit: int) -> dict[str, int]:
    """Draw up to ``limit`` different faults that fit the task and leave at least one point."""
    faults: dict[str, int] = {}
    for name in rng.sample(sorted(PENALTIES), k=rng.randint(0, limit)):
        clash = {"off_topic", "bare", "wrong", "missing"}
        unfit = (name == "missing" and task.total < 3) or (name == "wrong" and not task.can_be_wrong)
        if unfit or (name in clash and clash & faults.keys()) or (name == "bare" and not task.bare):
            continue
        times = rng.randint(1, min(2, task.total - 1)) if name == "missing" else 1
        if sum(PENALTIES[fault] * count for fault, count in faults.items()) + PENALTIES[name] * times < FULL_MARKS:
            faults[name] = times
    return faults


def make_pairs() -> list[dict[str, object]]:
    """Make all pairs, training first: one per prompt, with different scores."""
    rng = random.Random(SEED)
    bank = list(tasks())
    rng.shuffle(bank)
    pairs = []
    for number, task in enumerate(bank[: TRAIN + EVALUATION], start=1):
        better, worse = _two_responses(task, rng)
        pairs.append(
            {
                "prompt_id": f"demo-{number:03d}",
                "prompt": [{"role": "user", "content": task.prompt}],
                "chosen": [{"role": "assistant", "content": better.text}],
                "rejected": [{"role": "assistant", "content": worse.text}],
                "score_chosen": better.score,
                "score_rejected": worse.score,
            }
        )
    return pairs


def write_pairs(folder: Path) -> None:
    """Write ``pairs-train.jsonl`` and ``pairs-eval.jsonl`` into ``folder``."""
    pairs = make_pairs()
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("pairs-train", pairs[:TRAIN]), ("pairs-eval", pairs[TRAIN:])):
        lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in part)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _two_responses(task: Task, rng: random.Random) -> tuple[Response, Response]:
    while True:
        first, second = (respond(task, rng, draw_faults(task, rng, limit)) for limit in (1, 3))
        if first.score != second.score and first.text != second.text:
            return (first, second) if first.score > second.score else (second, first)


def _list_task(kind: str, items: list[str], count: int) -> Task:
    def answer(rng: random.Random, wanted: int, wrong: bool) -> str:
        other = rng.choice([name for name in LISTS if name != kind])
        chosen = rng.sample(LISTS[other] if wrong else items, k=wanted)
        return rng.choice(
            [
                f"Here are some {kind}: {_join(chosen)}.",
                f"{_capital(_join(chosen))}.",
                f"You could take {_join(chosen)}.",
            ]
        )

    return Task(f"Name {NUMBERS[count]} {kind}.", count, answer, bare=_capital(", ".join(items[:count])))


def _single(prompt: str, right: str, wrong: list[str], forms: list[str]) -> Task:
    def answer(rng: random.Random, wanted: int, mistaken: bool) -> str:
        return _capital(rng.choice(forms).format(rng.choice(wrong) if mistaken else right))

    return Task(prompt, 1, answer, bare=_capital(right))


def _arithmetic(first: int, operation: str, second: int, right: int) -> Task:
    question = f"{first} {operation} {second}"
    forms = [f"{question} is {{}}.", f"The result of {question} is {{}}.", "That makes {}."]
    return _single(f"What is {question}?", str(right), [str(right + 1), str(right + 7), str(right + 10)], forms)


def _counting(sequence: list[int]) -> Task:
    def answer(rng: random.Random, wanted: int, wrong: bool) -> str:
        numbers = sequence[:wanted]
        if wrong:
            numbers[0], numbers[-2:] = numbers[-1], [numbers[0], numbers[-2]]
        return rng.choice(["{}.", "Here you are: {}.", "Certainly: {}."]).format(", ".join(map(str, numbers)))

    down = " down" if sequence[0] > sequence[-1] else ""
    return Task(f"Count{down} from {sequence[0]} to {sequence[-1]}.", len(sequence), answer, bare="")


def _steps(prompt: str, steps: list[str]) -> Task:
    def answer(rng: random.Random, wanted: int, wrong: bool) -> str:
        kept = sorted(rng.sample(range(len(steps)), k=wanted))
        parts = [steps[index] for index in kept]
        return rng.choice([f"First {', then '.join(parts)}.", f"{_capital('; '.join(parts))}."])

    return Task(prompt, len(steps), answer, bare="", can_be_wrong=False)


def _join(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


if __name__ == "__main__":
    write_pairs(Path(sys.argv[1]))
