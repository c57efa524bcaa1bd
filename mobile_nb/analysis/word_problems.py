"""Stories of two to eight arithmetic steps, with the working written out; knows nothing about splits or models.

Somebody has some of one kind of thing. Sentences change how many, once or twice at a time, asides distract, the story
may move on to somebody who is compared with the last one, and a question ends it. The working keeps the books: each
change in the order of the story, then what the question adds. It is a function of the story but for two free choices
a line, drawn uniformly: "So", "Then" or "Now" opens it, and somebody "has", "owns" or "keeps" the things.
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
_VERBS = ("has", "owns", "keeps")
_GAIN = (
    "{a} buys {k} more {item}.",
    "{a} finds {k} {item}.",
    "A friend gives {a} {k} {item}.",
    "{a} wins {k} more {item} in a game.",
    "After that {a} gets {k} new {item}.",
)
_LOSE = (
    "{a} loses {k} {item}.",
    "{a} sells {k} of the {item}.",
    "{a} gives {k} {item} to a friend.",
    "Then {k} of the {item} of {a} are gone.",
    "A friend takes {k} {item} from {a}.",
)
_GAIN_LOSE = (
    "{a} buys {k} more {item} and loses {m}.",
    "{a} finds {k} {item} but gives {m} to a friend.",
    "After {a} gets {k} new {item}, {m} of them are gone.",
)
_LOSE_LOSE = ("{a} loses {k} {item} and sells {m}.", "{a} gives {k} {item} to a friend, and {m} more are gone.")
_DOUBLE = ("{a} doubles the number of {item}.", "{a} gets as many {item} again.")
_TRIPLE = ("{a} triples the number of {item}.", "{a} wins twice as many {item} as before.")
_HALVE = ("{a} gives half of the {item} away.", "{a} sells half of the {item}.", "{a} loses half of the {item}.")
_THIRD = ("{a} gives a third of the {item} away.", "{a} sells a third of the {item}.")
_SHARE = (
    "{a} shares the {item} among {k} friends and keeps one share.",
    "{a} puts the {item} into {k} equal bags and keeps one bag.",
)
_BOXES = (
    "{a} buys {n} boxes with {k} {item} each.",
    "{a} finds {n} bags with {k} {item} in each.",
    "On each of {n} days {a} gets {k} more {item}.",
)
_EACH = (
    "{a} gives {k} {item} to each of {n} friends.",
    "{a} fills {n} bags with {k} {item} each and sells them.",
    "On each of {n} days {a} loses {k} {item}.",
)
_ASIDE = (
    "{c} has {k} {other}.",
    "{c} also sees {k} {other}.",
    "{c} is {k} years old.",
    "The walk takes {k} minutes.",
    "There are {k} {other} in the shop.",
)
_MULTIPLES = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}


@dataclass(frozen=True)
class Draft:
    """A story with its question. chain: the equations of its working, such as "4*6=24;24-5=19"."""

    prompt: str
    answer: str
    steps: int
    solution: str
    chain: str


@dataclass
class _Story:
    """A story while it grows: its sentences, the lines and equations of its working, and who holds how many."""

    rng: Random
    item: str
    other: str
    told: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    equations: list[str] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)

    def tell(self, templates: tuple[str, ...] | str, **words: object) -> bool:
        template = templates if isinstance(templates, str) else self.rng.choice(templates)
        self.told.append(template.format(item=self.item, other=self.other, **words))
        return True

    def work(self, subject: str, *terms: int | str, tail: str = "") -> int:
        """Add a line such as ("Mia has", 12, "+", 7, "-", 3); one kind of operation at a time, from left to right."""
        result = terms[0]
        for sign, right in zip(terms[1::2], terms[2::2], strict=True):
            result = {"+": result + right, "-": result - right, "*": result * right, "/": result // right}[sign]
        opener, left = self.rng.choice(_OPENERS), " ".join(map(str, terms))
        self.lines.append(f" {opener} {subject} {left} = {result} {tail or self.item}.")
        self.equations.append(f"{left} = {result}".replace(" ", ""))
        return result

    def hold(self, who: str, *terms: int | str) -> None:
        self.held = {who: self.work(f"{who} {self.rng.choice(_VERBS)}", *terms)}


def _change(story: _Story, who: str) -> bool:
    """One sentence that changes what `who` holds, worked out in one line; False if the kind drawn does not fit."""
    rng, have = story.rng, story.held[who]
    k, m = rng.randint(2, 40), rng.randint(2, 12)
    kind = rng.choice(("gain", "gain", "lose", "lose", "both", "both", "fewer", "double", "triple", "halve", "share"))
    if kind == "gain" and have + k <= LARGEST:
        story.hold(who, have, "+", k)
        return story.tell(_GAIN, a=who, k=k)
    if kind == "lose" and have > k:
        story.hold(who, have, "-", k)
        return story.tell(_LOSE, a=who, k=k)
    if kind == "both" and have + k <= LARGEST and m <= k:
        story.hold(who, have, "+", k, "-", m)
        return story.tell(_GAIN_LOSE, a=who, k=k, m=m)
    if kind == "fewer" and have > k + m:
        story.hold(who, have, "-", k, "-", m)
        return story.tell(_LOSE_LOSE, a=who, k=k, m=m)
    if kind == "double" and 2 <= have <= LARGEST // 2:
        story.hold(who, 2, "*", have)
        return story.tell(_DOUBLE, a=who)
    if kind == "triple" and 2 <= have <= LARGEST // 3:
        story.hold(who, 3, "*", have)
        return story.tell(_TRIPLE, a=who)
    if kind == "halve" and have >= 4 and have % 2 == 0:
        story.hold(who, have, "/", 2)
        return story.tell(_HALVE, a=who)
    parts = [k for k in range(3, 10) if have % k == 0 and have > k]
    if kind == "share" and parts:
        k = rng.choice(parts)
        story.hold(who, have, "/", k)
        return story.tell(_SHARE, a=who, k=k)
    return False


def _change_by_parts(story: _Story, who: str) -> bool:
    """One sentence that is worked out in two lines; False if the kind drawn does not fit."""
    rng, have = story.rng, story.held[who]
    kind, n, k = rng.choice(("boxes", "each", "third")), rng.randint(2, 9), rng.randint(2, 9)
    if kind == "boxes" and have + n * k <= LARGEST:
        story.hold(who, have, "+", story.work("they hold", n, "*", k))
        return story.tell(_BOXES, a=who, n=n, k=k)
    if kind == "each" and have > n * k:
        story.hold(who, have, "-", story.work("they take", n, "*", k))
        return story.tell(_EACH, a=who, n=n, k=k)
    if kind == "third" and have >= 6 and have % 3 == 0:
        story.hold(who, have, "-", story.work("a third is", have, "/", 3))
        return story.tell(_THIRD, a=who)
    return False


def _compare(story: _Story, who: str, new: str) -> bool:
    """Bring in a new person whose number follows from that of `who`."""
    rng, have = story.rng, story.held[who]
    kind = rng.choice(("more", "fewer", "times", "half"))
    if kind == "more" and have <= LARGEST - 2:
        k = rng.randint(2, min(40, LARGEST - have))
        story.hold(new, have, "+", k)
        return story.tell("{b} has {k} more {item} than {a}.", a=who, b=new, k=k)
    if kind == "fewer" and have >= 4:
        k = rng.randint(2, min(40, have - 1))
        story.hold(new, have, "-", k)
        return story.tell("{b} has {k} fewer {item} than {a}.", a=who, b=new, k=k)
    if kind == "times":
        k = rng.choice(tuple(_MULTIPLES))
        if 2 <= have <= LARGEST // k:
            story.hold(new, k, "*", have)
            return story.tell("{b} has {times} as many {item} as {a}.", a=who, b=new, times=_MULTIPLES[k])
    if kind == "half" and have >= 4 and have % 2 == 0:
        story.hold(new, have, "/", 2)
        return story.tell("{b} has half as many {item} as {a}.", a=who, b=new)
    return False


def _ask(story: _Story, who: str) -> tuple[str, int]:
    """End the story with a question about `who`; returns its text and the answer."""
    rng, item, have = story.rng, story.item, story.held[who]
    kind, goal = rng.choice(("have", "have", "price", "need")), rng.randint(20, LARGEST)
    if kind == "price" and 2 <= have <= LARGEST // 2 and item != "coins":
        k = rng.randint(2, min(9, LARGEST // have))
        story.tell("{a} sells all the {item} for {k} coins each.", a=who, k=k)
        return f"How many coins does {who} get?", story.work(f"{who} gets", have, "*", k, tail="coins")
    if kind == "need" and goal > have:
        story.tell("{a} wants {k} {item}.", a=who, k=goal)
        return f"How many {item} does {who} need?", story.work(f"{who} needs", goal, "-", have)
    return f"How many {item} does {who} have?", have


def _story(rng: Random, length: int) -> tuple[_Story, str, int]:
    """Let a story grow until its working has at least `length` lines, and end it with a question."""
    item, other = rng.sample(_ITEMS, 2)
    who, *waiting, outsider = rng.sample(_PEOPLE, rng.choice((2, 3, 3, 4)))
    story = _Story(rng, item, other)
    aside_at = rng.sample(range(1, 12), 2)
    if rng.random() < 0.3:
        n, k = rng.randint(2, 9), rng.randint(2, 9)
        story.hold(who, n, "*", k)
        story.tell("{a} has {n} boxes with {k} {item} each.", a=who, n=n, k=k)
    else:
        story.held[who] = rng.randint(4, 70)
        story.tell("{a} has {k} {item}.", a=who, k=story.held[who])
    while len(story.lines) < length:
        if len(story.told) in aside_at:
            story.tell(_ASIDE, c=rng.choice((outsider, who)), k=rng.randint(2, LARGEST))
        kind = rng.random()
        if kind < 0.2 and waiting:
            if _compare(story, who, waiting[0]):
                who = waiting.pop(0)
        elif kind < 0.4:
            _change_by_parts(story, who)
        else:
            _change(story, who)
    return story, *_ask(story, who)


def draft(rng: Random) -> Draft:
    """Draw a story whose working has 2 to 8 lines, each number of lines equally likely."""
    length = rng.randint(2, 8)
    while True:
        story, question, answer = _story(rng, rng.randint(length - 1, length))
        if len(story.lines) == length:
            break
    return Draft(
        prompt=f"Question: {' '.join(story.told)} {question}\nAnswer:",
        answer=str(answer),
        steps=length,
        solution="".join(story.lines) + f" The answer is {answer}.",
        chain=";".join(story.equations),
    )
