"""Stories of two to six arithmetic steps, with the working written out; knows nothing about splits, models or tokens.

A story holds who has how many of one kind of thing. Sentences change that, asides distract, a question ends it; the
working is only those lines that the answer builds on, in the order of the story. It is a function of the story but
for one free choice: each line opens with "So", "Then" or "Now", drawn uniformly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

__all__ = ["Draft", "draft"]

LARGEST = 99  # every number of a problem is one of 0..99, so that a tokenizer can give each its own token

_PEOPLE = (
    "Ada Ben Cara Dan Eva Finn Gina Hugo Iris Jon Kira Leo Mia Nils Olga Paul Rosa Sam Tina Uma Vera Will Yara Zoe"
).split()
_ITEMS = (
    "apples pears plums eggs cups books pens coins cards stamps shells beads rings kites balls stones nuts cookies "
    "candles flowers stickers marbles buttons ribbons"
).split()
_OPENERS = ("So", "Then", "Now")
_GAIN = (
    "{a} buys {k} more {item}.",
    "{a} finds {k} {item}.",
    "A friend gives {a} {k} {item}.",
    "{a} wins {k} more {item} in a game.",
)
_LOSE = (
    "{a} loses {k} {item}.",
    "{a} sells {k} of the {item}.",
    "{a} gives {k} {item} to a friend.",
    "Then {k} of the {item} of {a} are gone.",
)
_DOUBLE = ("{a} doubles the number of {item}.", "{a} gets as many {item} again.")
_HALVE = ("{a} gives half of the {item} away.", "{a} sells half of the {item}.", "{a} loses half of the {item}.")
_SHARE = (
    "{a} shares the {item} among {k} friends and keeps one share.",
    "{a} puts the {item} into {k} equal bags and keeps one bag.",
)
_BOXES = ("{a} buys {n} boxes with {k} {item} each.", "{a} finds {n} bags with {k} {item} in each.")
_ASIDE = ("{c} has {k} {other}.", "{c} also sees {k} {other}.", "{c} is {k} years old.", "The walk takes {k} minutes.")
_MULTIPLES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}


@dataclass
class _Step:
    """One line of the working: "{subject} {left} {sign} {right} = {result} {tail}." and the lines it builds on."""

    subject: str
    left: int
    sign: str
    right: int
    tail: str
    needs: tuple[int | None, ...]

    @property
    def result(self) -> int:
        a, b = self.left, self.right
        return {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[self.sign]


@dataclass
class _Story:
    """A story while it grows: its sentences, its working, and who holds how many (and by which line of the working)."""

    rng: Random
    people: list[str]
    item: str
    other: str
    told: list[str] = field(default_factory=list)
    steps: list[_Step] = field(default_factory=list)
    held: dict[str, tuple[int, int | None]] = field(default_factory=dict)

    def tell(self, templates: tuple[str, ...] | str, **words: object) -> bool:
        template = templates if isinstance(templates, str) else self.rng.choice(templates)
        self.told.append(template.format(item=self.item, other=self.other, **words))
        return True

    def work(self, subject: str, left: int, sign: str, right: int, *needs: int | None, tail: str = "") -> int:
        self.steps.append(_Step(subject, left, sign, right, tail or self.item, needs))
        return len(self.steps) - 1

    def hold(self, who: str, left: int, sign: str, right: int, *needs: int | None) -> None:
        line = self.work(f"{who} has", left, sign, right, *needs)
        self.held[who] = (self.steps[line].result, line)


def _change(story: _Story, who: str) -> bool:
    """One sentence that changes what `who` holds by plus, minus, doubling, halving or sharing; False if none fits."""
    rng, (have, line) = story.rng, story.held[who]
    kind = rng.choice(("gain", "gain", "lose", "lose", "double", "halve", "share", "boxes"))
    if kind == "gain" and have <= LARGEST - 2:
        k = rng.randint(2, min(40, LARGEST - have))
        story.hold(who, have, "+", k, line)
        return story.tell(_GAIN, a=who, k=k)
    if kind == "lose" and have >= 4:
        k = rng.randint(2, min(40, have - 1))
        story.hold(who, have, "-", k, line)
        return story.tell(_LOSE, a=who, k=k)
    if kind == "double" and 2 <= have <= LARGEST // 2:
        story.hold(who, 2, "*", have, line)
        return story.tell(_DOUBLE, a=who)
    if kind == "halve" and have >= 4 and have % 2 == 0:
        story.hold(who, have, "/", 2, line)
        return story.tell(_HALVE, a=who)
    if kind == "share":
        parts = [k for k in range(3, 10) if have % k == 0 and have > k]
        if parts:
            k = rng.choice(parts)
            story.hold(who, have, "/", k, line)
            return story.tell(_SHARE, a=who, k=k)
    if kind == "boxes":
        n, k = rng.randint(2, 9), rng.randint(2, 9)
        if have + n * k <= LARGEST:
            bought = story.work("they hold", n, "*", k)
            story.hold(who, have, "+", n * k, line, bought)
            return story.tell(_BOXES, a=who, n=n, k=k)
    return False


def _compare(story: _Story, who: str, new: str) -> bool:
    """Bring in a new person whose number follows from that of `who`."""
    rng, (have, line) = story.rng, story.held[who]
    kind = rng.choice(("more", "fewer", "times", "half"))
    if kind == "more" and have <= LARGEST - 2:
        k = rng.randint(2, min(40, LARGEST - have))
        story.hold(new, have, "+", k, line)
        return story.tell("{b} has {k} more {item} than {a}.", a=who, b=new, k=k)
    if kind == "fewer" and have >= 4:
        k = rng.randint(2, min(40, have - 1))
        story.hold(new, have, "-", k, line)
        return story.tell("{b} has {k} fewer {item} than {a}.", a=who, b=new, k=k)
    if kind == "times":
        k = rng.choice(tuple(_MULTIPLES))
        if 2 <= have <= LARGEST // k:
            story.hold(new, k, "*", have, line)
            return story.tell("{b} has {times} as many {item} as {a}.", a=who, b=new, times=_MULTIPLES[k])
    if kind == "half" and have >= 4 and have % 2 == 0:
        story.hold(new, have, "/", 2, line)
        return story.tell("{b} has half as many {item} as {a}.", a=who, b=new)
    return False


def _give(story: _Story, who: str, to: str) -> bool:
    """Move some of the items, or half of them, from one person to another: two lines of working."""
    rng, (have, line), (theirs, their_line) = story.rng, story.held[who], story.held[to]
    if have >= 4 and have % 2 == 0 and theirs + have // 2 <= LARGEST and rng.random() < 0.3:
        story.hold(who, have, "/", 2, line)
        story.hold(to, theirs, "+", have // 2, their_line, story.held[who][1])
        return story.tell("{a} gives half of the {item} to {b}.", a=who, b=to)
    most = min(40, have - 1, LARGEST - theirs)
    if most < 2:
        return False
    k = rng.randint(2, most)
    story.hold(who, have, "-", k, line)
    story.hold(to, theirs, "+", k, their_line)
    return story.tell("{a} gives {k} {item} to {b}.", a=who, b=to, k=k)


def _ask(story: _Story) -> tuple[str, int, int | None]:
    """End the story with a question; returns its text, the answer and the last line of working."""
    rng, people = story.rng, list(story.held)
    who = rng.choice(people)
    have, line = story.held[who]
    kind = rng.choice(("left", "together", "more", "price"))
    if kind == "price" and 2 <= have <= LARGEST // 2 and story.item != "coins":
        k = rng.randint(2, min(9, LARGEST // have))
        story.tell("{a} sells all the {item} for {k} coins each.", a=who, k=k)
        last = story.work(f"{who} gets", have, "*", k, line, tail="coins")
        return f"How many coins does {who} get?", have * k, last
    if kind in ("together", "more") and len(people) > 1:
        two = rng.choice([name for name in people if name != who])
        theirs, their_line = story.held[two]
        if kind == "together" and have + theirs <= LARGEST:
            last = story.work("they have", have, "+", theirs, line, their_line)
            return f"How many {story.item} do {who} and {two} have together?", have + theirs, last
        if kind == "more" and have > theirs:
            last = story.work(f"{who} has", have, "-", theirs, line, their_line, tail=f"more {story.item}")
            return f"How many more {story.item} does {who} have than {two}?", have - theirs, last
    return f"How many {story.item} does {who} have?", have, line


def _needed(steps: list[_Step], last: int | None) -> list[_Step]:
    """The lines of the working that the last one builds on, in order."""
    wanted, stack = set(), [last]
    while stack:
        line = stack.pop()
        if line is not None and line not in wanted:
            wanted.add(line)
            stack.extend(steps[line].needs)
    return [steps[line] for line in sorted(wanted)]


def _try_story(rng: Random, length: int) -> tuple[_Story, str, int, list[_Step]]:
    item, other = rng.sample(_ITEMS, 2)
    people = rng.sample(_PEOPLE, rng.choice((1, 2, 2, 3)))
    story = _Story(rng, people, item, other)
    outsider = rng.choice([name for name in _PEOPLE if name not in people])
    aside_at = rng.randrange(1, 9)
    while len(story.steps) < length:
        new = next((name for name in people if name not in story.held), None)
        if len(story.told) == aside_at:
            story.tell(_ASIDE, c=rng.choice([outsider, *people]), k=rng.randint(2, LARGEST))
        who = rng.choice(list(story.held)) if story.held else None
        if who is None or (new and rng.random() < 0.15):
            name = new or people[0]
            if rng.random() < 0.2:
                n, k = rng.randint(2, 9), rng.randint(2, 9)
                story.hold(name, n, "*", k)
                story.tell("{a} has {n} boxes with {k} {item} each.", a=name, n=n, k=k)
            else:
                story.held[name] = (rng.randint(4, 70), None)
                story.tell("{a} has {k} {item}.", a=name, k=story.held[name][0])
        elif new and rng.random() < 0.4:
            _compare(story, who, new)
        elif len(story.held) > 1 and rng.random() < 0.25:
            _give(story, who, rng.choice([name for name in story.held if name != who]))
        else:
            _change(story, who)
    question, answer, last = _ask(story)
    return story, question, answer, _needed(story.steps, last)


@dataclass(frozen=True)
class Draft:
    """A story with its question. chain: the equations of its working, such as "4*6=24;24-5=19"."""

    prompt: str
    answer: str
    steps: int
    solution: str
    chain: str


def draft(rng: Random) -> Draft:
    """Draw a story whose working has 2 to 6 lines, each number of lines equally likely."""
    length, steps = rng.randint(2, 6), []
    while len(steps) != length:
        story, question, answer, steps = _try_story(rng, rng.randint(max(2, length - 1), length))
    lines = [f" {rng.choice(_OPENERS)} {s.subject} {s.left} {s.sign} {s.right} = {s.result} {s.tail}." for s in steps]
    return Draft(
        prompt=f"Question: {' '.join(story.told)} {question}\nAnswer:",
        answer=str(answer),
        steps=length,
        solution="".join(lines) + f" The answer is {answer}.",
        chain=";".join(f"{s.left}{s.sign}{s.right}={s.result}" for s in steps),
    )
