"""Two tasks with written-out steps and one right answer, in random wordings.

Both are addition of two numbers below 100. In `digits` the numbers are figures, which the two tokenizers cut
differently; in `words` they are spelled out in English, which two real tokenizers cut nearly alike.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random


SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
NAMES = [
    "Amina",
    "Björn",
    "Chidi",
    "Dolores",
    "Evgenia",
    "Farouk",
    "Giuseppe",
    "Hyacinth",
    "Ignacio",
    "Josephine",
    "Katarzyna",
    "Lakshmi",
]
THINGS = ["lanterns", "figs", "kettles", "violins", "marbles", "tulips", "walnuts", "envelopes", "thimbles", "saucers"]
# Every number of this many pairs is held out for evaluation, from teachers and students alike.
HELD_OUT = 400
_LAST_NUMBER = re.compile(r"(?:\bis|:|\bhas|\btogether|\bare) (\d+|[a-z -]+)\.$")


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with one way to write its solution.

    Attributes:
        prompt: What a model reads; ends with a line break.
        solution: Steps and answer.
        answer: What a right solution ends with.
    """

    prompt: str
    solution: str
    answer: str

    def is_solved_by(self, completion: str) -> bool:
        """Whether a completion ends with the answer and nothing that belongs to the number before it."""
        last = _LAST_NUMBER.search(completion.strip())
        return last is not None and last[1] == self.answer


def digits(random: Random, a: int, b: int) -> Problem:
    """Addition of tens and ones apart, in figures."""
    question = random.choice(
        [f"Add {a} and {b}.", f"What is {a} plus {b}?", f"Compute {a} + {b}.", f"Please find the sum of {a} and {b}."]
    )
    tens, ones = a - a % 10 + b - b % 10, a % 10 + b % 10
    steps = [f"{a - a % 10}+{b - b % 10}={tens}", f"{a % 10}+{b % 10}={ones}"]
    random.shuffle(steps)
    joint = random.choice([", ", "; ", " and "])
    written = (
        f"{random.choice([f'{a}+{b}:', 'Well,', 'First,'])} {steps[0]}{joint}{steps[1]}{joint}{tens}+{ones}={a + b}."
    )
    ending = random.choice(["The sum is", "Answer:", "So it is"])
    return Problem(f"{question}\n", f"{written} {ending} {a + b}.", str(a + b))


def words(random: Random, a: int, b: int) -> Problem:
    """Addition of numbers in words."""
    name, things, ones = random.choice(NAMES), random.choice(THINGS), a % 10 + b % 10
    question = random.choice(
        [
            f"{name} has {spell(a)} {things} and gets {spell(b)} more. How many {things} does {name} have?",
            f"There are {spell(a)} {things} in one box and {spell(b)} in another. {name} counts them all.",
            f"{name} buys {spell(a)} {things} today and {spell(b)} tomorrow. How many is that?",
        ]
    )
    make, keep = random.choice(["make", "give", "are"]), random.choice(["carry", "keep"])
    steps = f"{SMALL[a % 10]} and {SMALL[b % 10]} {make} {SMALL[ones]}, {keep} {TENS[ones // 10]}. "
    tens = 10 * (a // 10 + b // 10 + ones // 10)
    steps += f"{TENS[a // 10]} and {TENS[b // 10]} and {TENS[ones // 10]} {make} {spell(tens)}. "
    ending = random.choice([f"So {name} has", "All together", f"The {things} are"])
    return Problem(f"{question}\n", f"{steps}{ending} {spell(a + b)}.", spell(a + b))


def spell(number: int) -> str:
    """A number below 200 in English words."""
    if number >= 100:
        rest = f" {spell(number - 100)}" if number > 100 else ""
        return f"one hundred{rest}"
    if number < 20:
        return SMALL[number]
    return TENS[number // 10] + (f"-{SMALL[number % 10]}" if number % 10 else "")


TASKS: dict[str, Callable[[Random, int, int], Problem]] = {"digits": digits, "words": words}


def problems(task: str, seed: int | str, *, held_out: bool) -> Iterator[Problem]:
    """Problems without end; those that are held out have pairs of numbers that the others never have."""
    random, pairs = Random(f"{task} {seed} {held_out}"), [(a, b) for a in range(10, 100) for b in range(10, 100)]
    Random("held out").shuffle(pairs)
    allowed = pairs[:HELD_OUT] if held_out else pairs[HELD_OUT:]
    while True:
        yield TASKS[task](random, *random.choice(allowed))
