"""The questions that judges are asked, in words of our own: each has a name and a version, its hash stands in the summary.

The references' prompts are other texts, so a judged score is vlmkit's, whatever model judges. A change of a text is a new
version: replies to the old one are not used again.
"""

from __future__ import annotations

from vlmkit.evaluation.judging import JudgePrompt

CHOSEN_OPTION = JudgePrompt(
    name="chosen-option",
    version=1,
    wanted="a letter",
    template="""\
A multiple choice question was answered in free words. Find out which option the answer means. Do not solve the question
yourself, and do not correct the answer: only say what it chooses.

Reply with one capital letter, that of the option, and nothing else. Reply Z if the answer chooses none of the options,
more than one, or nothing at all.

Example
Question: What does the woman hold?
A. an umbrella
B. a basket
C. a lantern
Answer: Something woven, with a handle, full of apples.
Your reply: B

Example
Question: What does the woman hold?
A. an umbrella
B. a basket
C. a lantern
Answer: Her little brother's hand.
Your reply: Z

Now this one.
Question: $question
$options
Answer: $answer
Your reply:""",
)

FINAL_ANSWER = JudgePrompt(
    name="final-answer",
    version=1,
    wanted="an answer on its last line",
    template="""\
Below are a question and a response to it. Copy out the final answer that the response gives. Do not solve the question
yourself, and do not correct the response.

Reply with the answer alone, on one line, in this form: $form. No words around it, no unit unless the form asks for one.
If the response gives no final answer, reply NONE.

Example (form: a whole number)
Question: How many seats are free?
Response: Of nine seats five are taken, which leaves 4 seats.
Your reply: 4

Example (form: a number with 2 decimal places)
Question: What is the slope of the line?
Response: From the two marked points it rises by 2.9 over 2, so it climbs by 1.45 per hour.
Your reply: 1.45

Example (form: the letter of the chosen option in brackets)
Question: Which is longer? (A) the red bar (B) the blue bar
Response: The blue one is longer.
Your reply: (B)

Example (form: a whole number)
Question: How many birds are there?
Response: The picture cannot be seen.
Your reply: NONE

Now this one (form: $form).
Question: $question
Response: $answer
Your reply:""",
)

SAME_ANSWER = JudgePrompt(
    name="same-answer",
    version=1,
    wanted="1 or 0",
    template="""\
Compare a response to a question with the reference answer. The response is right if its final answer means the same as
the reference: the same option, value or statement, in whatever words, notation or equivalent form. It is wrong if it
differs, contradicts itself, or gives no final answer. Do not solve the question yourself: the reference is right.

Reply with 1 if the response is right, with 0 if it is wrong, and nothing else.

Question: $question
Reference answer: $expected
Response: $answer
Your reply:""",
)

ATTEMPT = JudgePrompt(
    name="factual-attempt",
    version=1,
    wanted="CORRECT, INCORRECT or NOT_ATTEMPTED",
    template="""\
Grade the answer to a question about a picture (which you need not see) against the reference answer. Question and answer
may be in Chinese or English; other spellings, other languages and further true details are no fault.

CORRECT: the answer holds what the reference says, and nothing that contradicts it.
INCORRECT: something in the answer contradicts the reference, even if it is said with doubt.
NOT_ATTEMPTED: what the reference says is missing from the answer, and nothing contradicts it: it declines, says that it
does not know, or asks back.

Reply with one of the words CORRECT, INCORRECT, NOT_ATTEMPTED, and nothing else.

Question: $question
Reference answer: $expected
Answer: $answer
Your reply:""",
)

OPEN_ANSWER = JudgePrompt(
    name="open-answer",
    version=1,
    wanted="one number from 0 to 1",
    template="""\
Grade an answer to a question about a picture (which you need not see) by comparing it with the ground truth. In the
ground truth <AND> joins parts that must all be there, <OR> separates wordings of which any will do. The score is the
share of the ground truth that the answer gets right, from 0.0 (nothing) to 1.0 (everything), in steps of 0.1.

Reply with the number and nothing else.

Examples: question | ground truth | answer | score
Which gears turn left? | 2 <AND> 4 | Gear 3. | 0.0
Which gears turn left? | 2 <AND> 4 | Only the second one. | 0.5
Which gears turn left? | 2 <AND> 4 | The fourth and the second. | 1.0
Why is the sign odd? | it points at a wall <AND> it says "exit" | A sign for a way out that shows the way into bricks. | 0.9
Why is the sign odd? | it points at a wall <AND> it says "exit" | It hangs on a wall. | 0.3
What is on the plate? | fries <OR> chips | Chips, with salt. | 1.0
Who painted this? | Vermeer | I cannot tell. | 0.0

Now this one: question | ground truth | answer | score
$question | $expected | $answer |""",
)

REVIEW = JudgePrompt(
    name="two-assistants",
    version=1,
    wanted="two numbers from 1 to 10 on its first line",
    template="""\
Two assistants answered a question about a picture. You do not see the picture; these lines describe it:
$context

Question: $question

Answer of assistant 1:
$expected

Answer of assistant 2:
$answer

Rate how helpful, relevant, accurate and detailed each answer is, each on a scale from 1 to 10, higher is better. Neither
the order of the answers nor their length may count.

The first line of your reply holds the two numbers alone, for assistant 1 and assistant 2, separated by a space. You may
give your reasons from the second line on.""",
)

CORRECTNESS = JudgePrompt(
    name="yes-no-correctness",
    version=1,
    wanted="correct, incorrect or unclear",
    template="""\
A yes-or-no question about a picture was answered. Decide by the reference, which is right, whether the answer is.

correct: its conclusion and what it says of the facts agree with the reference.
incorrect: it contradicts the reference.
unclear: it takes no side, says that it does not know, or that it cannot be decided.

Reply with one of the words correct, incorrect, unclear, and nothing else.

Question: $question
Reference: $expected
Answer: $answer
Your reply:""",
)

YES_OR_NO = JudgePrompt(
    name="yes-or-no",
    version=1,
    wanted="Yes, No or Unknown",
    template="""\
A yes-or-no question was answered in free words. Say whether the answer means yes or no. Do not answer the question
yourself.

Reply Yes, No, or, where the answer takes no side, Unknown, and nothing else.

Example
Question: Is the left bar taller than the right one?
Answer: The right bar falls short of the left by two units.
Your reply: Yes

Example
Question: Is there a boat on the lake?
Answer: Only ducks are to be seen on the water.
Your reply: No

Now this one.
Question: $question
Answer: $answer
Your reply:""",
)
