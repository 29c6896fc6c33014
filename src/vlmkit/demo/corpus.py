"""What the demo's tokenizer is trained on: everyday English, and the words that the shapes are asked about in."""

from __future__ import annotations

from vlmkit.demo.shapes import COLORS, KINDS, PLACES, QUESTIONS, SHAPES_SHARES

PROSE = (
    "The morning train was late again, so we walked along the river and talked about the work that was still to do.",
    "She opened the window, looked at the garden and asked whether the apples were ready to be picked.",
    "There are three books on the table; the largest of them is about the history of the city.",
    "He has never seen the sea, but he can tell you the name of every ship in this picture.",
    "Please describe the image in detail. What is the person in the middle doing, and why?",
    "The answer is not in the text: look at the picture first, then read the question once more.",
    "A small dog runs across the street while two children wait in front of the house.",
    "How much does it cost, how long does it take, and who is going to pay for it?",
    "When water is heated it becomes steam, and when it is cooled it turns into ice.",
    "The chart shows that the number of people who live in the country has grown every year since 1950.",
    "Which of the following statements is true? Choose the letter of the right answer.",
    "Yes, there is a red car to the left of the tree. No, there is no bicycle behind it.",
    "You are a helpful assistant. Answer the question with a single word or a short phrase.",
    "I would like to know where the station is and what time the next bus leaves.",
    "They built the bridge in 1887 out of stone and iron, and it still stands today.",
    "It was raining, it had been raining for days, and nobody thought that it would ever stop.",
    "The first step is to measure the length of each side; the second is to add them together.",
    "We found that most models know more than they say, and say more than they know.",
    "On the right you can see the old market, with its green roof and its many small windows.",
    "My brother thinks the movie was too long, although the last part of it made him laugh.",
    "In the kitchen a man is cutting bread, and the light falls on his hands from above.",
    "The sign says that the shop is open from nine in the morning until half past six in the evening.",
    "Between the mountains and the lake lies a village of a few hundred people.",
    "Could you please read the words at the bottom of the page and write them down for me?",
    "The sum of four and five is nine; the difference between ten and seven is three.",
    "Nothing in this world is certain, but some things are far more likely than others.",
    "The teacher wrote a long line of numbers on the board and asked which one came next.",
    "A user asks, the model answers, and the system keeps a record of both.",
    "Most birds can fly, yet the largest of them only run, and they run very fast.",
    "Because the road was closed, the driver had to turn around and find another way home.",
)
"""Sentences written for this purpose."""


def corpus() -> list[str]:
    """Lines of text, the same ones in the same order each time; what is asked in the demo occurs most often."""
    answers = [*COLORS, *KINDS, *PLACES, *map(str, SHAPES_SHARES)]
    roles = ["system\n", "user\n", "assistant\n"]
    return [*PROSE, *(10 * [*QUESTIONS.values(), *answers, *(f" {answer}" for answer in answers), *roles])]
